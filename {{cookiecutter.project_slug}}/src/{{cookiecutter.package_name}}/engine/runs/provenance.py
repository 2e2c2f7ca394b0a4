"""Where a result comes from: the commit of the source, and the versions of the packages."""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "torchmetrics", "numpy")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def commit_words(git: Mapping[str, Any] | None) -> str:
    """Describes what `git_state` returned, in Markdown."""
    if git is None:
        return "no commit is known"
    return f"commit `{git['commit'][:12]}`" + ("" if git["clean"] else ", with changes that were not committed")


def git_state() -> dict[str, Any] | None:
    """Returns the commit of this project's source and whether all of it was committed; None outside a repository."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie in an environment within some other repository.
    if shutil.which("git") is None or git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "--verify", "HEAD")
    return None if commit is None else {"commit": commit, "clean": git("status", "--porcelain") == ""}
