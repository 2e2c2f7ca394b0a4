"""Jinja filters for the answers: defaults that work, text quoted for TOML and YAML, and an early refusal."""

import importlib.util
import json
import os
import re
from pathlib import Path

from cookiecutter.exceptions import FailedHookException
from jinja2 import Environment
from jinja2.ext import Extension
from slugify import slugify

# The rules live in the hook, which also runs where this refusal does not (`--replay`).
_spec = importlib.util.spec_from_file_location("rules", Path(__file__).parent / "hooks/pre_gen_project.py")
rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rules)


def slug(name: str, reserved: list[str]) -> str:
    """A folder name from any words; those that leave nothing behind, as an emoji alone, become `my-project`."""
    words = slugify(name, max_length=60) or "my-project"
    return f"{words}-project" if rules.is_taken(words.replace("-", "_"), reserved) else words


def package(project_slug: str, reserved: list[str]) -> str:
    """A Python identifier that hides no module and no dependency."""
    name = re.sub(r"\W+", "_", project_slug.lower(), flags=re.ASCII)[:40].strip("_")
    if not name or name[0].isdigit():
        name = f"project_{name}".rstrip("_")
    return f"{name}_project" if rules.is_taken(name, reserved) else name


def quoted(text: str) -> str:
    """A double-quoted string of TOML and YAML. `tojson` would escape an emoji as two surrogates: invalid TOML."""
    return json.dumps(text, ensure_ascii=False)


def refuse_bad_answers(answers: dict) -> str:
    """Raises what cookiecutter prints as one line; a hook that fails is printed with cookiecutter's own traceback."""
    sentences = rules.refusals(answers)
    if sentences:
        raise FailedHookException("\n".join(f"error: {sentence}" for sentence in sentences))
    return ""


class NameFilters(Extension):
    """Registers the filters above; named in cookiecutter.json."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        # The hook that notes where a project comes from runs in the project's folder, and is not told.
        os.environ["TEMPLATE_FOLDER"] = str(Path(__file__).resolve().parent)
        environment.filters.update(slug=slug, package=package, quoted=quoted, refuse_bad_answers=refuse_bad_answers)
