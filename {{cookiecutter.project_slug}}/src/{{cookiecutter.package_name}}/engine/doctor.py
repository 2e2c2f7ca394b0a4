"""What this machine has, what is missing and how to get it, and which strategy fits.

python -m <package> doctor

It needs nothing but Python itself: what it looks for may be missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .cores import num_cores, num_schedulable

if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = __name__.partition(".")[0]
ENGINE = Path(__file__).resolve().parent
PROJECT = ENGINE.parents[2]
HASHES = "engine.sha256"
GIB = 2**30
SHOWN = ("torch", "lightning", "hydra-core", "torchmetrics", "onnx", "onnxruntime", "optuna")
INSTALL = "pip install -c constraints.txt -e . --group dev"
LEAST_DISK, LEAST_SHARED = 5 * GIB, GIB  # for checkpoints, and for the batches that a loader's processes hand over


class Finding(NamedTuple):
    """One line of the report. `remedy` is empty if nothing is amiss; a training cannot begin if `missing` is true."""

    what: str
    found: str
    remedy: str = ""
    missing: bool = False


def main() -> None:
    torch = import_torch()
    findings = [*python(), *packages(), *gpus(torch), *storage(), git(), engine(), *template(), strategy(torch)]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "missing" if finding.missing else "note" if finding.remedy else "ok"
        print(f"{mark:<9}{finding.what:<{width}}  {finding.found}")
        if finding.remedy:
            print(f"{'':<{11 + width}}{finding.remedy}")
    missing = [finding.what for finding in findings if finding.missing]
    if missing:
        sys.exit(f"error: {', '.join(missing)}: the lines that begin with 'missing' say how to get it.")
    print(f"\nnext: python -m {PACKAGE} train {options(torch)}".rstrip())


def import_torch() -> ModuleType | None:
    try:
        import torch
    except Exception:  # a damaged installation raises anything
        return None
    return torch


def project() -> tuple[str, list[str]]:
    """Returns the versions of Python and the packages that the project asks for, in its source or as installed."""
    source = PROJECT / "pyproject.toml"
    if source.is_file():
        section = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return section["requires-python"], section["dependencies"]
    name = metadata.packages_distributions()[PACKAGE][0]
    return metadata.metadata(name)["Requires-Python"], metadata.requires(name) or []


def python() -> list[Finding]:
    asked, _ = project()
    found, remedy = f"{platform.python_version()} on {platform.system()}", ""
    is_wrong = not fits(platform.python_version(), asked)
    if is_wrong:
        remedy = f"this project asks for {asked}: make setup PYTHON=..."
    elif sys.version_info < (3, 11, 10):
        remedy = "worker processes of a DataLoader can hang as they start (cpython issue 112275): take 3.11.10 or later"
    return [Finding("Python", found, remedy, missing=is_wrong)]


def packages() -> list[Finding]:
    """Lists the packages of `SHOWN`, and every package that is missing, too old or too new."""
    findings = []
    for requirement in project()[1]:
        name, bounds = re.findall(r"^([\w.-]+)(.*)$", requirement)[0]
        found = version(name)
        if found is None or not fits(found, bounds):
            findings.append(
                Finding(name, found or "not installed", f"'{requirement}' is needed: {INSTALL}", missing=True)
            )
        elif name in SHOWN:
            findings.append(Finding(name, found))
    return findings


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(found: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as `>=2.10,<3`."""
    ordered = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    checks = re.findall(r"(>=|<)\s*([\d.]+)", bounds)
    return all(ordered[sign](release(found), release(bound)) for sign, bound in checks)


def release(version: str) -> list[int]:
    """Returns the numbers of a version, which compare as versions do."""
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def gpus(torch: ModuleType | None) -> list[Finding]:
    """Compares the GPUs that the driver sees with those that torch sees."""
    driver = output_lines("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if torch is None:
        return [Finding("GPUs", "unknown: torch cannot be imported", INSTALL, missing=True)]
    if torch.backends.mps.is_available():
        return [Finding("GPUs", "Apple's, by MPS")]
    if not torch.cuda.is_available():
        if not driver:
            return [Finding("GPUs", "none: trainings run on the CPU")]
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        remedy = "install the torch for your driver (README: 'torch for the CPU or for CUDA')"
        return [Finding("GPUs", f"{len(driver)}, but torch, {build}, sees none", remedy)]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in found)
    findings = [Finding("GPUs", f"{len(found)}: {names}")]
    findings.append(Finding("CUDA", f"{torch.version.cuda or torch.version.hip}; driver {driver_version(driver)}"))
    nccl = torch.distributed.is_nccl_available()
    remedy = "" if nccl or len(found) == 1 else "strategy=ddp needs a torch with NCCL: the wheels for Linux have it"
    findings.append(Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())) if nccl else "none", remedy))
    return findings


def driver_version(lines: list[str]) -> str:
    return lines[0].rsplit(",", 1)[-1].strip() if lines else "unknown"


def output_lines(*command: str) -> list[str]:
    """Returns the output of a command, and nothing if the command is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def storage() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    remedy = "" if free > LEAST_DISK else "checkpoints may not fit: paths.log_dir=<folder on another disk>"
    findings = [Finding("disk", f"{free / GIB:,.0f} GiB free in this folder", remedy)]
    if not os.access(Path.cwd(), os.W_OK):
        findings.append(Finding("folder", "cannot be written", "run the commands in another", missing=True))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        remedy = "" if free > LEAST_SHARED else "data.num_workers=0, or in Docker --shm-size=8g"
        findings.append(Finding("shared memory", f"{free / GIB:,.1f} GiB free, for data.num_workers", remedy))
    cores, of_machine = num_cores(), num_schedulable()
    limit = f" of {of_machine}, by the CPU quota of the container" if cores < of_machine else ""
    return [*findings, Finding("CPU cores", f"{cores}{limit}")]


def git() -> Finding:
    lines = output_lines("git", "--version")
    remedy = "" if lines else "install git: without it no run knows the commit that it came from"
    return Finding("git", lines[0].removeprefix("git version ") if lines else "not installed", remedy)


def engine(folder: Path = ENGINE) -> Finding:
    """Compares the engine with the hashes of its files. Editing it is the owner's right, and never an error."""
    version = read_text(folder / "VERSION").strip() or "of unknown version"
    edits = [f"{path} ({what})" for path, what in engine_edits(folder).items()]
    if not edits:
        return Finding("engine", f"{version}, as made")
    shown = ", ".join(edits[:5]) + (f" and {len(edits) - 5} more" if len(edits) > 5 else "")
    remedy = "an update replaces the engine: code of your own is safe outside of it"
    return Finding("engine", f"{version}, edited: {shown}", remedy)


def engine_edits(folder: Path) -> dict[str, str]:
    """Returns the files that are not as made: path to `changed`, `added` or `missing`.

    A folder that is absent as a whole is a feature that the owner removed, and no edit.
    """
    lines = re.findall(r"^([0-9a-f]{64})  (.+)$", read_text(folder / HASHES), re.MULTILINE)
    made = {path: digest for digest, path in lines}
    found = engine_hashes(folder)
    folders = {parent for path in found for parent in Path(path).parents}
    edits = {path: "missing" for path in made.keys() - found.keys() if Path(path).parent in folders}
    edits |= {path: "changed" if path in made else "added" for path in found if made.get(path) != found[path]}
    return dict(sorted(edits.items()))


def engine_hashes(folder: Path) -> dict[str, str]:
    """Returns the sha256 of each file of the engine. Line ends of Windows do not count: git makes them."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: hashlib.sha256(files[name].read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        for name in sorted(files)
        if name != HASHES and "__pycache__" not in name
    }


def read_text(path: Path) -> str:
    """Returns the contents of a file, and an empty text if it is not there."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def template(project: Path = PROJECT, engine: Path = ENGINE) -> list[Finding]:
    """Compares the engine's version with the one recorded, and with the template itself if it is on this machine."""
    record = read_text(project / ".cruft.json")
    if not record:
        return []
    try:
        recorded = json.loads(record)
        address, version = recorded["template"], recorded["context"]["cookiecutter"]["_template_version"]
        local = json.loads(read_text(Path(address) / "cookiecutter.json") or "{}")
    except (ValueError, KeyError, TypeError):
        return [Finding("template", "unknown: .cruft.json is damaged", "take it from git again")]
    newest = max(version, local.get("_template_version", version), key=release)
    is_older = release(read_text(engine / "VERSION")) < release(newest)
    return [Finding("template", f"{newest} at {address}", "the engine is older: make update" if is_older else "")]


def strategy(torch: ModuleType | None) -> Finding:
    number = torch.cuda.device_count() if torch is not None else 0
    if number > 1:
        reason = f"a process on each of {number} GPUs; fsdp for a model that one cannot hold"
    elif number == 1:
        reason = "one GPU; data.micro_batch_size=auto for a batch that it cannot hold"
    else:
        reason = "one process; strategy=ddp trainer.devices=2 tries two on the CPU"
    return Finding("strategy", f"{options(torch) or 'strategy=single'}: {reason}")


def options(torch: ModuleType | None) -> str:
    """Returns the options of `train` that suit this machine."""
    return "strategy=ddp" if torch is not None and torch.cuda.device_count() > 1 else ""


if __name__ == "__main__":
    main()
