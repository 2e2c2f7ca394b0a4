"""Jinja filters for names: default answers that work, and text quoted for TOML and YAML."""

import json
import keyword
import re
import sys

from jinja2 import Environment
from jinja2.ext import Extension
from slugify import slugify


def slug(name: str, reserved: list[str]) -> str:
    """A folder name from any words; those that leave nothing behind, as an emoji alone, become `my-project`."""
    words = slugify(name) or "my-project"
    return f"{words}-project" if _taken(words, reserved) else words


def package(project_slug: str, reserved: list[str]) -> str:
    """A Python identifier that hides no module and no dependency."""
    name = re.sub(r"\W+", "_", project_slug.lower(), flags=re.ASCII).strip("_")
    if not name or name[0].isdigit():
        name = f"project_{name}".rstrip("_")
    return f"{name}_project" if _taken(name, reserved) else name


def quoted(text: str) -> str:
    """A double-quoted string of TOML and YAML. `tojson` would escape an emoji as two surrogates: invalid TOML."""
    return json.dumps(text, ensure_ascii=False)


def _taken(name: str, reserved: list[str]) -> bool:
    module = name.replace("-", "_")
    return keyword.iskeyword(module) or module in sys.stdlib_module_names or module in reserved


class NameFilters(Extension):
    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters.update(slug=slug, package=package, quoted=quoted)
