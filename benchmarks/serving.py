"""Requests a second and latency of a project's server, beside raw handlers, FastAPI, MLServer and LitServe.

In an environment of the generated project, where Debian's wrk is installed (make tools; make session NAME=peers):

python benchmarks/serving.py artifacts/digit_classifier/1 --peers build/peers
python benchmarks/serving.py artifacts/digit_classifier/1 --batching     # beside itself without batches

All serve the same ONNX file to the same client, on loopback, in turns: a server is started, asked and ended again, and
each ratio is of one round. One sample a request, as JSON.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "servers"
CLIENTS = (1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--peers", type=Path, help="folder with the environments handlers/, mlserver/ and litserve/")
    parser.add_argument("--batching", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed: run 'make tools'.")
    bundle = options.bundle.resolve()
    names = ["ours"]
    names += ["one by one"] if options.batching else []
    names += ["asgi", "rsgi", "bare", "mlserver", "litserve"] if options.peers else []
    found: dict[tuple[str, int], list[tuple[float, float]]] = {(n, c): [] for n in names for c in CLIENTS}
    with tempfile.TemporaryDirectory() as scratch:
        script = write_request(bundle, Path(scratch))
        for number in range(options.rounds):
            for name in names if number % 2 else names[::-1]:
                with serving(name, bundle, options.peers, Path(scratch)) as address:
                    for clients in CLIENTS:
                        ask(address, clients, 1, script)  # warm
                        found[name, clients].append(ask(address, clients, options.seconds, script))
                        rate, p99 = found[name, clients][-1]
                        line = f"{name:>11}, {clients:2} clients: {rate:8,.0f} a second, p99 {p99:7.2f} ms"
                        print(f"round {number + 1}/{options.rounds}  {line}", flush=True)
    print_table(names, found)


def print_table(names: list[str], found: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores; medians (range) of the rounds\n")
    print("| server | clients | requests a second | p99, ms | ours in its place, times as many | p99 of ours |")
    print("| --- | --- | --- | --- | --- | --- |")
    for clients in CLIENTS:
        for name in names:
            rates, tails = zip(*found[name, clients], strict=True)
            ours, our_tails = zip(*found["ours", clients], strict=True)
            ratios = sorted(mine / theirs for mine, theirs in zip(ours, rates, strict=True))
            tail = statistics.median(mine / theirs for mine, theirs in zip(our_tails, tails, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {tail:.2f} of its"
            print(
                f"| {name} | {clients} | {statistics.median(rates):,.0f} | {statistics.median(tails):.2f} "
                f"| {'' if name == 'ours' else spread} |"
            )


def write_request(bundle: Path, scratch: Path) -> Path:
    """What wrk runs: one golden sample, as every server takes it."""
    with np.load(bundle / "golden.npz") as golden:
        sample = golden["x"][:1]
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (described,) = manifest["inputs"]
    datatype = described["dtype"].upper().replace("FLOAT", "FP")
    tensor = {"name": "x", "datatype": datatype, "shape": sample.shape, "data": sample.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]})
    script = scratch / "request.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = '{body}'\nwrk.headers['Content-Type'] = 'application/json'\n",
        encoding="utf-8",
    )
    return script


def ask(address: str, clients: int, seconds: int, script: Path) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of the latency in ms."""
    command = [
        "wrk",
        "-t",
        "1",
        "-c",
        str(clients),
        "-d",
        f"{seconds}s",
        "--timeout",
        "20s",
        "--latency",
        "-s",
        str(script),
        address,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"error: {address} did not answer all requests:\n{output}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", output).groups()
    factor = {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]), float(number) * factor


@contextmanager
def serving(name: str, bundle: Path, peers: Path | None, scratch: Path) -> Iterator[str]:
    """The address that takes requests, once it does."""
    port, file = free_port(), bundle / "model.onnx"
    model = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["name"]
    python_path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    package, environment = model_package(bundle), os.environ | {"MODEL_FILE": str(file), "PYTHONPATH": python_path}
    own = [f"bundle={bundle}", f"port={port}", "logs=json"]
    path = f"/v2/models/{model}/infer"
    if name == "ours":
        command = [sys.executable, "-m", package, "serve", *own]
    elif name == "one by one":
        command = [sys.executable, str(HERE / "one_by_one.py"), package, *own]
    elif name in ("asgi", "bare"):
        script = "bare.py" if name == "bare" else "raw_asgi.py"
        command, path = [str(peers.resolve() / "handlers/bin/python"), str(HERE / script), str(port)], "/infer"
    elif name == "rsgi":
        granian = [str(peers.resolve() / "handlers/bin/granian"), "--interface", "rsgi", "--loop", "uvloop"]
        command, path = [*granian, "--no-access-log", "--port", str(port), "raw_rsgi:app"], "/infer"
    elif name == "litserve":
        python = str(peers.resolve() / "litserve/bin/python")
        command, path = [python, str(HERE / "litserve_app.py"), str(file), str(port)], "/predict"
    else:
        folder = scratch / "mlserver"
        folder.mkdir(exist_ok=True)
        # In one process: its workers do not start with uvloop 0.23, and a small network would only wait for them.
        settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1"}
        (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
        (folder / "model-settings.json").write_text(json.dumps({"name": model, "implementation": "mlserver_app.Onnx"}))
        command = [str(peers.resolve() / "mlserver/bin/mlserver"), "start", str(folder)]
    with (scratch / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}{path}"
    try:
        wait(process, port, address, scratch)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def model_package(bundle: Path) -> str:
    """The package that exported the bundle: its networks are its classes."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest["config"]["model"]["net"]["_target_"].split(".")[0])


def wait(process: subprocess.Popen[bytes], port: int, address: str, scratch: Path) -> None:
    body = re.search(r"wrk.body = '(.*)'", (scratch / "request.lua").read_text())[1].encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    for _ in range(600):
        time.sleep(0.1)
        if process.poll() is not None:
            sys.exit(f"error: the server ended: {[path.read_text()[-2000:] for path in scratch.glob('*.log')]}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:  # not there yet
            continue
    sys.exit(f"error: {address} does not answer within a minute.")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    main()
