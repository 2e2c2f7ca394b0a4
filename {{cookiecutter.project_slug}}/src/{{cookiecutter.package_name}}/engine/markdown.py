"""Renders the Markdown pages that runs and bundles leave: `report.md` and the model card."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined


def render(template: Path, **values: Any) -> str:
    """Fills in a Jinja template; a name that it does not get is an error."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")  # of a table in Markdown
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
