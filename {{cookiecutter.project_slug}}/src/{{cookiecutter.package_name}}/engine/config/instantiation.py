"""Builds the object that a section of the configuration names."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ..errors import UserError, one_line
from .validation import check


def build(section: Mapping[str, Any], path: str, **given: Any) -> Any:
    """The object that `section["_target_"]` names; `given` holds what only the code knows, such as the DataSpec.

    `path` is the section's place on the command line, for the sentence of a refusal.
    """
    check(section, path, known=given)
    try:
        # Passing `given` to Hydra would turn a dataclass into a configuration: a partial takes it as it is.
        return instantiate({**section, "_partial_": True}, _convert_="all")(**given)
    except (UserError, ModuleNotFoundError):
        raise
    except InstantiationException as error:
        raise UserError(f"{path} cannot be built: {one_line(error.__cause__ or error)}") from error
    except Exception as error:  # what a constructor raises for a value that it cannot use is up to its author
        raise UserError(f"{path} cannot be built: {one_line(error)}") from error
