"""What Hydra 1.3 and Hydra 1.4 spell differently, and Hydra 1.5 will not take in the old way."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import hydra
from hydra.utils import get_object
from omegaconf import OmegaConf

from . import PACKAGE

_IS_1_3 = hydra.__version__.startswith("1.3.")
# Hydra 1.3 behaves like 1.1 without it, and 1.4 has deprecated it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if _IS_1_3 else {}
# Of `hydra.main`: Hydra 1.4 asks which log handlers it may build, as those of this project and of hydra-colorlog.
MAIN_OPTIONS = VERSION_BASE or {"execution_whitelist": [f"{PACKAGE}.*", "colorlog.*"]}


def register_resolver(name: str, resolver: Callable[..., Any], use_cache: bool = False) -> None:
    """Makes `${name:...}` known; OmegaConf 2.3 has another function under the name that 2.4 prefers."""
    register: Callable[..., None] = OmegaConf.register_new_resolver if _IS_1_3 else OmegaConf.register_resolver
    register(name, resolver, use_cache=use_cache, replace=True)


def instantiate(section: Mapping[str, Any]) -> Any:
    """Returns the object that the section names.

    Hydra 1.4 may call what the section itself names. What runs code for anybody, as `os.system`, it refuses anyhow.
    """
    allowed = {} if _IS_1_3 else {"_execution_whitelist_": sorted(set(_targets(section)))}
    return hydra.utils.instantiate(dict(section), _convert_="all", **allowed)


def _targets(section: Any) -> Iterator[str]:
    """The names of all targets, as written and as their modules define them."""
    if isinstance(section, Mapping):
        if "_target_" in section:
            yield section["_target_"]
            target = get_object(section["_target_"])
            yield f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
        for value in section.values():
            yield from _targets(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from _targets(value)
