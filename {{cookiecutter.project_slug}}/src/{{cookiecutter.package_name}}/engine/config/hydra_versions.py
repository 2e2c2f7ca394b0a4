"""What Hydra 1.3 and Hydra 1.4 spell differently, and Hydra 1.5 will not take in the old way."""

from collections.abc import Callable, Mapping
from typing import Any

import hydra
import hydra.utils
from omegaconf import OmegaConf

from ..warning_filters import WarningFilter, warnings_ignored
from . import PACKAGE

_IS_1_3 = hydra.__version__.startswith("1.3.")
# Hydra 1.3 behaves like 1.1 without it, and 1.4 has deprecated it.
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if _IS_1_3 else {}
# Of `hydra.main`: Hydra 1.4 asks which log handlers it may build, as those of this project and of hydra-colorlog.
MAIN_OPTIONS = VERSION_BASE or {"execution_whitelist": [f"{PACKAGE}.*", "colorlog.*"]}

WITHOUT_WHITELIST = WarningFilter(UserWarning, r"\s*hydra\.utils\.instantiate\(\) resolved _target_=", ".*")


def register_resolver(name: str, resolver: Callable[..., Any], use_cache: bool = False) -> None:
    """Makes `${name:...}` known; OmegaConf 2.3 has another function under the name that 2.4 prefers."""
    register: Callable[..., None] = OmegaConf.register_new_resolver if _IS_1_3 else OmegaConf.register_resolver
    register(name, resolver, use_cache=use_cache, replace=True)


def instantiate(section: Mapping[str, Any]) -> Any:
    """Returns the object that the section names; Hydra's own list of what no option may call holds, as `os.system`.

    Hydra 1.4 warns of it where no list of allowed targets replaces this one. Such a list could only repeat the section.
    """
    utils: Any = hydra.utils  # of either version
    listed = {} if _IS_1_3 else {"_execution_whitelist_": utils.execution_whitelist(None, reset=True)}
    with warnings_ignored(WITHOUT_WHITELIST):
        return utils.instantiate(dict(section), _convert_="all", **listed)
