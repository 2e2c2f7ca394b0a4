"""Checks a configuration against the signatures of what it names, as Hydra does not, and builds the objects."""

import inspect
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object

from ..errors import UserError, nearest, one_line
from .command_line import Config
from .hydra_versions import instantiate

Options = TypeVar("Options")

HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def read_options(config: Config, schema: type[Options], path: str = "") -> Options:
    """The fields of the frozen dataclass `schema` out of the configuration, their types checked."""
    hints = get_type_hints(schema)
    for key in hints.keys() - config.keys():
        raise UserError(f"'{f'{path}.{key}'.lstrip('.')}' is missing: do not leave it out.")
    values = {key: config[key] for key in hints}
    for key, value in values.items():
        _check_value(key, value, path, hints, {})
    return schema(**values)


def check(section: Mapping[str, Any], path: str, known: Mapping[str, Any] = types.MappingProxyType({})) -> None:
    """Refuses unknown keys and values of a wrong type, in this section and those within it.

    `known` holds the arguments that the code gives: the configuration must not set them too.
    """
    if "_target_" in section:
        check_arguments(_import(section["_target_"], path), section, path, known)
    for key, value in section.items():
        if isinstance(value, Mapping):
            check(value, f"{path}.{key}")


def check_arguments(
    call: Callable[..., Any],
    section: Mapping[str, Any],
    path: str,
    known: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Holds the keys and values of `section` against the signature of `call`."""
    parameters = _parameters(call)
    for key, value in section.items():
        if key in known:
            raise UserError(f"'{path}.{key}' is set by the project itself: leave it out.")
        if parameters is not None and key not in HYDRA_KEYS:
            _check_value(key, value, path, parameters, known)


def _import(target: str, path: str) -> Callable[..., Any]:
    try:
        call: Callable[..., Any] = get_object(target)
    except Exception as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {' '.join(str(error).split())}") from error
    return call


def parameters_of(target: str, path: str) -> dict[str, inspect.Parameter]:
    """The arguments that the class or function takes, and those of a base class to which it passes `**options` on.

    `path` is the section's place on the command line.
    """
    call, found = _import(target, path), dict[str, inspect.Parameter]()
    if not inspect.isclass(call):
        with suppress(TypeError, ValueError):  # what is written in C may not say what it takes
            found = dict(inspect.signature(call).parameters)
        return found
    for kind in inspect.getmro(call):
        if "__init__" in vars(kind):
            own = inspect.signature(vars(kind)["__init__"]).parameters
            found = {**own, **found}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return found


def _parameters(call: Callable[..., Any]) -> dict[str, Any] | None:
    """Names and type hints of what `call` takes; None where it takes anything or does not say."""
    try:
        parameters = inspect.signature(call).parameters.values()
        hints = get_type_hints(call.__init__ if inspect.isclass(call) else call)
    except (NameError, TypeError, ValueError):  # written in C, or with names that only a type checker imports
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name: hints.get(parameter.name, Any) for parameter in parameters}


def _check_value(key: str, value: Any, path: str, parameters: dict[str, Any], known: Mapping[str, Any]) -> None:
    if key not in parameters:
        raise UserError(f"'{path}.{key}' is no option; {nearest(key, set(parameters) - set(known), path)}")
    hint = parameters[key]
    if not _fits(value, hint):
        raise UserError(f"{f'{path}.{key}'.lstrip('.')}={value} does not fit: it takes {_words(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML can be what the hint says; hints that YAML cannot express are left to the callee."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if hint in (None, types.NoneType):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if (origin or hint) in (list, tuple):
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value if args)
    return not isinstance(value, str) or hint is Any or inspect.isclass(hint) is False


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    origin = get_origin(hint) or hint
    if origin is Literal:
        return " or ".join(str(arg).lower() if isinstance(arg, bool) else str(arg) for arg in get_args(hint))
    if origin in (Union, types.UnionType):
        words = map(_words, get_args(hint))
        return " or ".join(dict.fromkeys(word for group in words for word in group.split(" or ")))
    return names.get(hint, "a list" if origin in (list, tuple) else getattr(hint, "__name__", str(hint)))


def build(section: Mapping[str, Any], path: str, **given: Any) -> Any:
    """The object that `section["_target_"]` names; `given` holds what only the code knows, such as the DataSpec.

    `path` is the section's place on the command line, for the sentence of a refusal.
    """
    if "_target_" not in section:
        raise UserError(f"{path} names no class: give it a _target_, or leave it out.")
    check(section, path, known=given)
    try:
        # Passing `given` to Hydra would turn a dataclass into a configuration: a partial takes it as it is.
        return instantiate({**section, "_partial_": True})(**given)
    except (UserError, ModuleNotFoundError):
        raise
    except InstantiationException as error:
        raise UserError(f"{path} cannot be built: {one_line(error.__cause__ or error)}") from error
    except Exception as error:  # what a constructor raises for a value that it cannot use is up to its author
        raise UserError(f"{path} cannot be built: {one_line(error)}") from error
