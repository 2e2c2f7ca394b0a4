"""Runs the benchmarks one after the other and writes their tables into docs/benchmarks.md: `make benchmarks`.

python tools/benchmarks.py [<name> ...]     all, or some of them

Nothing else may run on the machine meanwhile. Each table is written as soon as it is there.
"""

import datetime
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import sessions
from sessions import BUILD, TEMPLATE, bake, run

PAGE = TEMPLATE / "docs/benchmarks.md"
PYTHON = ".venv/bin/python"
HOME = BUILD / "benchmarks"  # of the projects
CLONE = BUILD / "peers/clone"  # of lightning-hydra-template
SHORT = "trainer=cpu trainer.max_epochs=2 rehearse_export=false test=false"
# 67 MB that each request reads from memory: requests that are computed together read them once.
LARGE = "model=mlp model.net.widths=[4096,4096]"
VERSIONS = """
from importlib.metadata import distributions
from platform import python_version

found = {each.name: each.version for each in distributions()}
versions = [f"{name} {found[name]}" for name in ("torch", "lightning") if name in found]
print(", ".join([f"Python {python_version()}", *versions]))
"""


class Benchmark(NamedTuple):
    """A command that prints a table, which runs in a project where `first` has run."""

    command: str
    first: tuple[str, ...] = ()  # commands of the project
    kind: str = "images"  # the project's kind of data; "template": no project
    needs_peers: bool = False


BENCHMARKS = {
    "first_steps": Benchmark("first_steps.py", kind="template"),
    "strategies": Benchmark("strategies.py"),
    "training": Benchmark("training.py"),
    "peer": Benchmark(f"peer.py {CLONE.relative_to(TEMPLATE)}", needs_peers=True),
    "startup": Benchmark("startup.py"),
    "exports": Benchmark("exports.py"),
    "formats": Benchmark("exports.py --formats"),
    "loader": Benchmark("loader.py {bundle}", (f"train {SHORT}", "export formats=[onnx,safetensors]")),
    "serving": Benchmark(
        "serving.py {bundle} --rounds 4 --seconds 3 --peers build/peers",
        (f"train {SHORT}", "export"),
        needs_peers=True,
    ),
    "batching": Benchmark(
        "serving.py {bundle} --rounds 3 --seconds 3 --batching", (f"train {SHORT} {LARGE}", "export formats=[onnx]")
    ),
    "quality": Benchmark("quality.py digits"),
    "tabular": Benchmark("quality.py breast_cancer wine iris diabetes", kind="tables"),
    "decoding": Benchmark("decoding.py --workers 1 2"),
    "dealing": Benchmark("dealing.py"),
    "float32": Benchmark("float32.py"),
    "scaling": Benchmark("scaling.py --published"),
    "tests": Benchmark("first_steps.py --tests", kind="template"),
}


def main() -> None:
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        sys.exit(f"error: '{unknown[0]}' is no benchmark: give some of {', '.join(BENCHMARKS)}.")
    left_out = []
    for number, name in enumerate(names, start=1):
        if name == "peer" and not CLONE.is_dir():
            left_out.append(f"{name} (there is no clone of lightning-hydra-template: {PAGE.name} says how to make it)")
            continue
        start = time.monotonic()
        print(f"{number} of {len(names)}: {name}", flush=True)
        write(name, *measure(BENCHMARKS[name]))
        print(f"{number} of {len(names)}: {name} took {time.monotonic() - start:.0f} s", flush=True)
    for reason in left_out:
        print(f"not run: {reason}")
    print(f"next: git diff {PAGE.relative_to(TEMPLATE)}")


def measure(benchmark: Benchmark) -> tuple[str, str]:
    """Returns where the table comes from, which is the command, the day and the machine, and the table."""
    bundle = HOME / "images" / sessions.PROJECT / "artifacts/digit_classifier/1"
    command = benchmark.command.format(bundle=bundle)
    shown = f"python benchmarks/{benchmark.command.format(bundle='artifacts/digit_classifier/1')}"
    python, environment = TEMPLATE / PYTHON, dict(os.environ)
    if benchmark.kind != "template":
        project = set_up(benchmark.kind)
        python, environment["PYTHONPATH"] = HOME / "images" / sessions.PROJECT / PYTHON, str(project / "src")
        for words in benchmark.first:
            run(python, "-m", "digit_classifier", *words.split(), cwd=project)
    if benchmark.needs_peers:
        sessions.set_up_peers(HOME / "images" / sessions.PROJECT)
    if "peer.py" in command:
        python = BUILD / "peers/lightning-hydra-template/bin/python"
    script, *words = command.split()
    done = subprocess.run(
        [python, TEMPLATE / "benchmarks" / script, *words],
        cwd=TEMPLATE,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"error: '{shown}' ended with exit code {done.returncode}.")
    return f"`{shown}`, {datetime.date.today()}, {machine(python)}:", done.stdout.strip()


def set_up(kind: str) -> Path:
    """A project of this kind of data, generated anew; both kinds share an environment."""
    project = bake(HOME / kind, {"data_kind": kind})
    owner = project if kind == "images" else HOME / "images" / sessions.PROJECT
    if not (owner / "Makefile").exists():
        bake(HOME / "images", {})
    run("make", f"PYTHON={sys.executable}", "setup", cwd=owner)
    return project


def write(name: str, about: str, table: str) -> None:
    """Puts the table between the marks of its name, below the line that says where it comes from."""
    text = PAGE.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->\n)", re.DOTALL)
    if not marks.search(text):
        sys.exit(f"error: {PAGE} has no marks '<!-- {name} -->' and '<!-- end -->' for the table.")
    PAGE.write_text(marks.sub(lambda found: f"{found[1]}{about}\n\n{table}\n{found[2]}", text), encoding="utf-8")


def machine(python: str | Path) -> str:
    """The cores, and the versions in the environment of this interpreter."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    done = subprocess.run([python, "-c", VERSIONS], cwd=TEMPLATE, capture_output=True, text=True, check=True)
    return f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}, {done.stdout.strip()}"


if __name__ == "__main__":
    main()
