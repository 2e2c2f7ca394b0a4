"""Writes the engine's version and the hashes of its files, from which a project's `doctor` tells what was edited.

python tools/hashes.py
"""

import importlib
import json
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parents[1]
ENGINE = TEMPLATE / "{{cookiecutter.project_slug}}/src/{{cookiecutter.package_name}}/engine"

# The project's own code, so that both agree on which files count. It needs nothing but Python.
sys.path.insert(0, str(ENGINE.parent))
doctor = importlib.import_module(f"{ENGINE.name}.doctor")


def version() -> str:
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
    return f"{questions['_template_version']}\n"


def hashes() -> str:
    """The format of `sha256sum --check`."""
    return "".join(f"{digest}  {path}\n" for path, digest in doctor.engine_hashes(ENGINE).items())


def main() -> None:
    (ENGINE / "VERSION").write_text(version(), encoding="utf-8", newline="\n")
    (ENGINE / doctor.HASHES).write_text(hashes(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
