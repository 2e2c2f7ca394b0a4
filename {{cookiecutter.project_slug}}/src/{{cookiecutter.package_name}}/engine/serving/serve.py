"""Serve a bundle over HTTP by ONNX Runtime, without torch.

python -m <package> serve bundle=artifacts/<name>
python -m <package> serve bundle=artifacts/<name>/<version> host=127.0.0.1 port=8000
SERVE_TOKEN=... python -m <package> serve host=0.0.0.0
python -m <package> serve providers=[CUDAExecutionProvider]
"""

import ipaddress
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..config.command_line import Config
from ..config.validation import read_options
from ..errors import UserError
from ..inference.signing import check_key

TOKEN = "SERVE_TOKEN"  # an environment variable, since everybody on the machine can see options


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/serve.yaml`."""

    bundle: str
    key: str | None
    host: str
    port: int
    auth: Literal["auto", "none"]
    providers: list[str]
    num_threads: int
    tolerance: float | None
    poll_seconds: float | None
    max_body_bytes: int | None
    max_queue: int
    max_delay_ms: float
    timeout_seconds: float
    grace_seconds: int
    logs: Literal["auto", "json", "text"]
    drift: bool


RANGES = {
    "port": (0, 2**16 - 1),
    "num_threads": (0, 1024),
    "tolerance": (0, 1),
    "poll_seconds": (0.1, 86_400),
    "max_body_bytes": (1, 2**31),
    "max_queue": (1, 1_000_000),
    "max_delay_ms": (0, 10_000),
    "timeout_seconds": (0.01, 3600),
    "grace_seconds": (1, 3600),
}


def main(config: Config) -> None:
    options = read_options(config, Options)
    token = _check(options)
    if find_spec("httptools") is None:
        raise UserError("serving is not installed: run 'pip install -c constraints.txt --group serve'.")

    from .server import run_server  # here: httptools may be missing, and `--help` needs neither it nor ONNX Runtime

    run_server(options, token, Path(config["paths"]["artifact_dir"]))


def _check(options: Options) -> str | None:
    """Refuses options that cannot work; returns the token that clients must send, if any."""
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name}={value} is out of range: give {low} to {high}.")
    if options.key is not None:
        check_key(options.key, "key")
    if not options.providers:
        raise UserError("providers=[] computes nowhere: give [CPUExecutionProvider], or [CUDAExecutionProvider].")
    token = os.environ.get(TOKEN) if options.auth == "auto" else None
    if token == "":
        raise UserError(f"{TOKEN} is empty: give it a value, or unset it.")
    if token is None and options.auth == "auto" and not _is_loopback(options.host):
        raise UserError(
            f"host={options.host} lets others in: set the environment variable {TOKEN} to a token that they must "
            "send, or say auth=none."
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
