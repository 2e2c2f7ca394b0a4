"""What this machine has, what is missing and how to get it, and which strategy fits.

python -m <package> doctor

It needs nothing but Python itself: what it looks for may be missing.
"""

from __future__ import annotations

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

if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = __name__.partition(".")[0]
GIB = 2**30
SHOWN = ("torch", "lightning", "hydra-core", "torchmetrics", "onnx", "onnxruntime", "optuna")
INSTALL = "pip install -c constraints.txt -e . --group dev"
LEAST_DISK, LEAST_SHARED = 5 * GIB, GIB  # for checkpoints, and for the batches that a loader's processes hand over


class Finding(NamedTuple):
    """`remedy` is empty where nothing is amiss; what is `missing` must be mended before a training can begin."""

    what: str
    found: str
    remedy: str = ""
    missing: bool = False


def main() -> None:
    torch = import_torch()
    findings = [*python(), *packages(), *gpus(torch), *storage(), git(), strategy(torch)]
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
    """The versions of Python, and the packages, that this project asks for: of its source, or as it was installed."""
    source = Path(__file__).parents[3] / "pyproject.toml"
    if source.is_file():
        section = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        return section["requires-python"], section["dependencies"]
    name = metadata.packages_distributions()[PACKAGE][0]
    return metadata.metadata(name)["Requires-Python"], metadata.requires(name) or []


def python() -> list[Finding]:
    asked, _ = project()
    remedy = "" if fits(platform.python_version(), asked) else f"this project asks for {asked}: make setup PYTHON=..."
    return [Finding("Python", f"{platform.python_version()} on {platform.system()}", remedy, missing=bool(remedy))]


def packages() -> list[Finding]:
    """Some to be seen, and whatever is missing, too old or too new."""
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
    """Of bounds as `>=2.10,<3`."""
    ordered = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    checks = re.findall(r"(>=|<)\s*([\d.]+)", bounds)
    return all(ordered[sign](_numbers(found), _numbers(bound)) for sign, bound in checks)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def gpus(torch: ModuleType | None) -> list[Finding]:
    """What the driver sees, beside what torch does."""
    driver = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
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
    findings.append(Finding("CUDA", f"{torch.version.cuda or torch.version.hip}; driver {_driver(driver)}"))
    nccl = torch.distributed.is_nccl_available()
    remedy = "" if nccl or len(found) == 1 else "strategy=ddp needs a torch with NCCL: the wheels for Linux have it"
    findings.append(Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())) if nccl else "none", remedy))
    return findings


def _driver(lines: list[str]) -> str:
    return lines[0].rsplit(",", 1)[-1].strip() if lines else "unknown"


def _said(*command: str) -> list[str]:
    """The lines of a command that may not be there."""
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [*findings, Finding("CPU cores", str(cores))]


def git() -> Finding:
    lines = _said("git", "--version")
    remedy = "" if lines else "install git: without it no run knows the commit that it came from"
    return Finding("git", lines[0].removeprefix("git version ") if lines else "not installed", remedy)


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
    """Of `train` on this machine."""
    return "strategy=ddp" if torch is not None and torch.cuda.device_count() > 1 else ""


if __name__ == "__main__":
    main()
