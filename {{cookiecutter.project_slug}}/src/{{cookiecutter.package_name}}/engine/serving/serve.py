"""Serve a bundle over HTTP by ONNX Runtime, without torch.

python -m <package> serve bundle=artifacts/<name>
python -m <package> serve bundle=artifacts/<name>/<version> host=127.0.0.1 port=8000
SERVE_TOKEN=... python -m <package> serve host=0.0.0.0
python -m <package> serve providers=[CUDAExecutionProvider]
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..config.command_line import Config, command
from ..console import shown
from ..errors import UserError

if TYPE_CHECKING:
    from .batching import OpenRequests
    from .metrics import Metrics
    from .served import Served
    from .versions import Versions

log = logging.getLogger(__name__)

TOKEN = "SERVE_TOKEN"  # an environment variable: an option would be seen by everybody on the machine
LEAST_BODY, BYTES_PER_NUMBER = 16 * 2**20, 32  # of a body: a picture's; of a float as JSON


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/serve.yaml`."""

    bundle: str
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


class CutOff(UserError):
    """Requests that came in, and took too long when the server had to end."""

    exit_code = 1


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


@command("serve", needs=("paths",))
def main(config: Config) -> None:
    from ..config.validation import read_options

    options = read_options(config, Options)
    token = _check(options)
    if find_spec("fastapi") is None:
        raise UserError("serving is not installed: run 'pip install -c constraints.txt --group serve'.")

    from .app import create_app
    from .guard import Access
    from .listening import listen, run
    from .logs import is_terminal, log_as_json
    from .metrics import Metrics

    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can move: it takes the newest version now
    as_json = options.logs == "json" or (options.logs == "auto" and not is_terminal())
    if as_json:
        log_as_json()
    metrics = Metrics(options.drift)
    versions, open_requests = _versions(options, Path(config["paths"]["artifact_dir"]), metrics)
    access = Access(options.max_body_bytes or _largest_body(versions.current), token, as_json)
    with listen(options.host, options.port) as listening:
        app = create_app(
            versions,
            access,
            metrics,
            options.poll_seconds,
            started=lambda: _say(versions.current, listening, token),
        )
        run(app, listening, options.grace_seconds, open_requests)
    if app.num_cut_off:
        seconds = options.grace_seconds
        raise CutOff(
            f"grace_seconds={seconds} was too short: {app.num_cut_off} requests that had come in were cut off."
        )
    log.info("stopped     every request that had come in was answered")


def _versions(options: Options, artifact_dir: Path, metrics: Metrics) -> tuple[Versions, OpenRequests]:
    from ..inference.runtime import Bundle, find_bundle
    from .batching import Limits, OpenRequests
    from .served import Served
    from .versions import Versions

    given = Path(options.bundle).expanduser()
    folder = find_bundle(options.bundle, artifact_dir)
    if options.bundle == "latest" or folder.parent == given.resolve():
        folder = folder.parent  # no version was named: the newest, and what comes after it
    open_requests = OpenRequests()
    limits = Limits(options.max_queue, options.max_delay_ms / 1e3, options.timeout_seconds)

    def load(folder: Path) -> Served:
        bundle = Bundle(folder, providers=options.providers, num_threads=options.num_threads)
        return Served(bundle, limits, open_requests, metrics, options.tolerance)

    return Versions(folder, load, metrics), open_requests


def _check(options: Options) -> str | None:
    """The token that clients must show, if any."""
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name}={value} is out of range: give {low} to {high}.")
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


def _largest_body(served: Served) -> int:
    return max(LEAST_BODY, served.model.max_elements * BYTES_PER_NUMBER)


def _say(served: Served, listening: socket.socket, token: str | None) -> None:
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    log.info("bundle      %s: its files and golden samples are as they were published", shown(served.bundle.folder))
    log.info("speed       %.3f ms for one sample%s", served.latency_ms, "; with a token" if token else "")
    log.info("next        open %s in a browser, or: curl --data-binary @<file> %s/predict", address, address)
    log.info("serving     %s, version %s, at %s", served.model.name, served.model.version, address)


if __name__ == "__main__":
    main()
