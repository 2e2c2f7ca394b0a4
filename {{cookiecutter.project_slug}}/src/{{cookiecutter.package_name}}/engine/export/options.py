"""The options of `python -m <package> export`, which are refused before torch is imported."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from ..config.validation import read_options
from ..errors import UserError, nearest
from ..inference.signing import signer
from .formats import FORMATS

MOST_AT_ONCE = 65536  # samples, which the gate holds in memory
FORMAT_OPTIONS = ("opset", "num_calibration_samples", "calibration")


@dataclass(frozen=True)
class Request:
    """The plain options of `configs/export.yaml`."""

    ckpt_path: str
    formats: list[str] | str


@dataclass(frozen=True)
class Options:
    """The section `export` of `configs/export.yaml`; null stands for a format's own default."""

    name: str | None
    max_batch_size: int
    tolerance: float
    partial: bool
    max_metric_loss: float
    opset: int | None
    num_calibration_samples: int | None
    calibration: Literal["minmax", "entropy", "percentile"] | None
    golden: Literal["real", "synthetic"]
    sign: str | None

    def of_format(self, format_name: str) -> dict[str, Any]:
        """Returns the options that a format takes, with its defaults."""
        given = {name: getattr(self, name) for name in FORMAT_OPTIONS if getattr(self, name) is not None}
        return {name: given.get(name, default) for name, default in FORMATS[format_name].options.items()}


def checked_options(config: dict[str, Any]) -> tuple[str, list[str], Options]:
    """Returns the checkpoint, the names of the formats and the other options; raises `UserError` for a mistake."""
    request, options = read_options(config, Request), read_options(config["export"], Options, "export")
    formats = [request.formats] if isinstance(request.formats, str) else list(dict.fromkeys(request.formats))
    _check(formats, options)
    if options.sign is not None:
        signer(options.sign, "export.sign")
    return request.ckpt_path, formats, options


def _check(formats: list[str], options: Options) -> None:
    if not formats:
        raise UserError(f"formats=[] exports nothing: choose from {', '.join(FORMATS)}.")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"formats=[{name}] is no format; {nearest(name, FORMATS)}")
        for package in FORMATS[name].needs:
            if find_spec(package) is None:
                raise UserError(f"formats=[{name}] needs {package}: run 'pip install -c constraints.txt {package}'.")
    for option in FORMAT_OPTIONS:
        takers = [name for name, format in FORMATS.items() if option in format.options]
        if getattr(options, option) is not None and not set(takers) & set(formats):
            value = getattr(options, option)
            raise UserError(f"export.{option}={value} is for {', '.join(takers)}, not for {', '.join(formats)}.")
    if not 2 <= options.max_batch_size <= MOST_AT_ONCE:
        raise UserError(f"export.max_batch_size={options.max_batch_size} is out of range: give 2 to {MOST_AT_ONCE}.")
    if options.num_calibration_samples is not None and options.num_calibration_samples < 1:
        raise UserError(f"export.num_calibration_samples={options.num_calibration_samples} is too few: give 1 or more.")
    if not 0 <= options.tolerance < float("inf"):
        raise UserError(f"export.tolerance={options.tolerance} is out of range: give 0 or more, as 1.0e-5.")
    if not 0 <= options.max_metric_loss < 1:
        raise UserError(f"export.max_metric_loss={options.max_metric_loss} is out of range: give 0 to 1, as 0.005.")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", options.name or "_"):  # in addresses and configurations too
        raise UserError(f"export.name={options.name} is no name for a model: give letters, digits and any of _ - .")
