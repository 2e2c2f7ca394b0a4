"""Requests a second and latency of a project's server, beside raw handlers, FastAPI, MLServer and LitServe.

In an environment of the generated project, where Debian's wrk is installed (make tools; make session NAME=peers):

python benchmarks/serving.py artifacts/digit_classifier/1 --peers build/peers
python benchmarks/serving.py artifacts/digit_classifier/1 --batching     beside itself without batches

All serve the same ONNX file to the same client, on loopback, in turns: a server is started, asked and ended again, and
each ratio is of one round. One sample a request, as JSON. The raw handlers `asgi` (uvicorn) and `rsgi` (granian) do
nothing but ONNX Runtime and JSON, `fastapi` reads its request with pydantic.
"""

import argparse
import json
import os
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
from tables import at_least, at_most, print_table, say, spread

HERE = Path(__file__).parent / "servers"
CLIENTS = (1, 8, 64)
RAW = ("asgi", "rsgi")  # beside the faster of the two the bounds hold
BOUNDS_OF_RAW = {1: 0.85, 8: 0.8, 64: 0.8}
BOUNDS_OF_OTHERS = {"mlserver": 2.5, "litserve": 5.0}  # whose p99 ours stays below
BOUNDS_OF_BATCHES = {1: 0.9, 8: 2.0, 64: 2.0}  # beside one request after the other


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
    names += ["asgi", "rsgi", "fastapi", "mlserver", "litserve"] if options.peers else []
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
                        say(f"round {number + 1}/{options.rounds}  {line}")
    head = ["clients", "requests a second", *(f"beside {name}" for name in names[1:]), f"p99 of {', '.join(names)}"]
    print_table(head, [row(clients, names, found) for clients in CLIENTS])


def row(clients: int, names: list[str], found: dict[tuple[str, int], list[tuple[float, float]]]) -> list[str]:
    """How many times as many requests ours answers as each of the others, of each round."""
    rates = {name: [rate for rate, _ in found[name, clients]] for name in names}
    tails = {name: statistics.median(tail for _, tail in found[name, clients]) for name in names}
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True)] for name in names[1:]
    }
    medians = {name: statistics.median(of_rounds) for name, of_rounds in ratios.items()}
    bounds = {"one by one": BOUNDS_OF_BATCHES[clients], **BOUNDS_OF_OTHERS}
    if fastest := min(RAW, key=lambda name: medians.get(name, 0.0)) if RAW[0] in names else None:
        bounds[fastest] = BOUNDS_OF_RAW[clients]
    cells = [at_least(medians[name], bounds.get(name, 0.0), spread(ratios[name])) for name in names[1:]]
    others = [tails[name] for name in BOUNDS_OF_OTHERS if name in names]
    p99 = ", ".join(f"{tails[name]:,.3g}" for name in names)
    return [
        str(clients),
        f"{statistics.median(rates['ours']):,.0f}",
        *cells,
        at_most(tails["ours"], min(others, default=float("inf")), f"{p99} ms"),
    ]


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
    elif name in ("asgi", "fastapi"):
        script = "bare.py" if name == "fastapi" else "raw_asgi.py"
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
