"""The metrics of the gate: the module's own test loop in fresh processes, with each file in the place of `forward`."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..isolation import IsolatedError, IsolatedProcess
from ..spec import Deployed
from .contract import GateFailure
from .formats import FORMATS
from .gate import MULTIPLE, Limits, Parity
from .loops import run_replaced
from .network import Call

FLOOR = 1e-6  # of max(1, |metric|): metrics are logged in float32


@dataclass
class MetricGate:
    """Compares test metrics, in one process for a `with` block.

    `expected` are those of the trained model, and `allowed` what rounding may change in each. Where no metric can be
    compared, `reason` says why, with the remedy.
    """

    checkpoint: Path
    data: Mapping[str, Any]
    call: Call
    limits: Limits
    described: Deployed
    monitor: str | None
    expected: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    random: list[str] = field(default_factory=list)
    reason: str | None = None
    has_loop: bool = True

    def __enter__(self) -> Self:
        self.process = IsolatedProcess().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.__exit__(*error)

    def measure(self, module: LightningModule, rounding: float) -> None:
        """Runs the loops of the trained model; `rounding` is how far rounding may move the outputs of a file."""
        name = type(module).__name__
        if not is_overridden("test_step", module):
            self.has_loop, self.reason = False, f"{name} has no test_step: write one that calls self(...)"
            return
        if self.described.network is not None and self.described.result is None:
            self.reason = f"deployed() of {name} gives a network and no result=: say what replaces forward's value"
            return
        self.expected, again = (self._run("eager")["metrics"] for _ in range(2))
        self.random = [name for name, value in self.expected.items() if not _agree(value, again[name], _floor(value))]
        replaced = self._run("float32", moved=rounding)
        if not replaced["num_calls"]:
            self.reason = f"test_step of {name} never calls forward: call self(...) in the place of its parts"
            return
        others = [self._run("float32")["metrics"]]
        with suppress(GateFailure):  # code of the network that takes no other type
            others.append(self._run("float64")["metrics"])
        for metric, value in self.expected.items():
            # Outputs that are moved as far as rounding may move them need no multiple.
            apart = [abs(replaced["metrics"][metric] - value)]
            apart += [MULTIPLE * abs(other[metric] - value) for other in others]
            self.allowed[metric] = max([_floor(value), *filter(math.isfinite, apart)])

    def judge(self, parity: Parity, folder: Path) -> dict[str, float]:
        """Returns the metrics of a file that passed the comparison of outputs; raises `GateFailure`."""
        format = FORMATS[parity.format]
        if self.reason is not None:
            if format.exact:
                return {}
            raise GateFailure(f"{parity.file} can be judged by a test metric only, and there is none: {self.reason}")
        found: dict[str, float] = self._run(parity.format, file=str(folder / parity.file))["metrics"]
        if format.exact:
            for name, value in self.expected.items():
                allowed = self.allowed[name]
                if name not in self.random and not _agree(found[name], value, allowed):
                    raise GateFailure(
                        f"{parity.file} has {name} {found[name]:.7g} on the test split, the trained model {value:.7g}; "
                        f"{allowed:.2g} is what rounding may change."
                    )
            return found
        allowed = self.limits.max_metric_loss
        for name in self._judging_metrics():
            lost = abs(found[name] - self.expected[name])
            if not lost <= allowed * max(1.0, abs(self.expected[name])) + 1e-9:
                raise GateFailure(
                    f"{parity.file} has {name} {found[name]:.4f} on the test split, the trained model "
                    f"{self.expected[name]:.4f}; export.max_metric_loss={allowed:g} may be lost."
                )
        return found

    def _judging_metrics(self) -> list[str]:
        """The metric that `deployed()` names, or the one of the test that is monitored in training, or else all."""
        known = [name for name in self.expected if name not in self.random]
        if self.described.metric is not None and self.described.metric not in known:
            raise GateFailure(
                f"deployed() names metric='{self.described.metric}', which the test loop does not log: it logs "
                f"{', '.join(known)}"
            )
        chosen = self.described.metric or (self.monitor or "").replace("val", "test", 1)
        return [chosen] if chosen in known else known

    def _run(self, network: str, **given: Any) -> dict[str, Any]:
        arguments = {"ckpt_path": str(self.checkpoint), "data": dict(self.data), "call": asdict(self.call)}
        size = self.limits.max_batch_size
        try:
            found: dict[str, Any] = self.process.call(
                run_replaced, **arguments, max_batch_size=size, network=network, **given
            )
        except IsolatedError as error:
            raise GateFailure(f"the test loop fails with '{network}' in the place of forward: {error}") from error
        return found


def _floor(value: float) -> float:
    return FLOOR * max(1.0, abs(value)) if math.isfinite(value) else 0.0


def _agree(first: float, second: float, allowed: float) -> bool:
    return first == second or abs(first - second) <= allowed or (math.isnan(first) and math.isnan(second))
