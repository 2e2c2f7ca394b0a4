"""What is installed is what `constraints.txt` says, down to the last of what a dependency brings."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
DIRECT = [*PYPROJECT["project"]["dependencies"], *chain(*PYPROJECT["dependency-groups"].values())]


def pins(path: Path) -> dict[str, Version]:
    """Of the lines that hold on this machine."""
    text = re.sub(r" \\\n.*", "", path.read_text(encoding="utf-8"))
    lines = [Requirement(line) for line in text.splitlines() if "==" in line]
    found = [line for line in lines if line.marker is None or line.marker.evaluate()]
    return {canonicalize_name(line.name): Version(str(line.specifier).removeprefix("==")) for line in found}


def brought(requirements: list[str]) -> dict[str, Version]:
    """Of these and all that they need in turn, what is installed; a group that was left out is not."""
    found: dict[str, Version] = {}
    todo = [Requirement(requirement) for requirement in requirements]
    seen = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                installed = distribution(name)
            except PackageNotFoundError:
                continue
            found[name] = Version(installed.version)
            needed = [Requirement(line) for line in installed.requires or []]
            todo += [line for line in needed if line.marker is None or line.marker.evaluate({"extra": extra})]
    return found


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins(PROJECT / "constraints.txt")
    for name, version in sorted(brought(DIRECT).items()):
        if re.match(r"nvidia-|cuda-|triton$", name):  # a torch for CUDA brings its own
            continue
        assert name in pinned, f"{name}=={version} is not in constraints.txt: run 'make constraints'"
        assert pinned[name].public == version.public, f"{name} is {version}: run 'make setup' or 'make constraints'"


@pytest.mark.skipif(not (PROJECT / "deploy/requirements.txt").exists(), reason="not run: there is no server")
def test_image_of_the_server_is_made_of_the_same_with_hashes() -> None:
    path = PROJECT / "deploy/requirements.txt"
    image, pinned = pins(path), pins(PROJECT / "constraints.txt")
    assert image == {name: pinned[name] for name in image}
    assert brought(PYPROJECT["dependency-groups"]["serve"]).keys() <= image.keys()
    blocks = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip())
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)
