"""Warnings of dependencies that a user can do nothing about; all others are shown, and are errors in the tests."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class WarningFilter(NamedTuple):
    """A warning that is ignored, and why."""

    category: type[Warning]
    message: str  # a regular expression for its beginning
    module: str  # a regular expression for the module that the warning names
    reason: str


IGNORED_WARNINGS = (
    WarningFilter(
        UserWarning,
        r"Experiment logs directory .* exists and is not empty",
        r"lightning\.fabric\.loggers\.csv_logs",
        "metrics.csv lies in the run directory, where Hydra has put its own files before",
    ),
    WarningFilter(
        UserWarning,
        r"The number of training batches \(\d+\) is smaller than the logging interval",
        r"lightning\.pytorch\.loops\.fit_loop",
        "figures are logged once an epoch, not every few steps",
    ),
    WarningFilter(
        UserWarning,
        r"The dirpath has changed from",
        r"lightning\.pytorch\.callbacks\.model_checkpoint",
        "a run that starts from another run's checkpoint writes into its own directory",
    ),
    WarningFilter(
        UserWarning,
        r"Checkpoint directory .* exists and is not empty",
        r"lightning\.pytorch\.callbacks\.model_checkpoint",
        "a resumed or restarted run writes into the directory that it had",
    ),
    WarningFilter(
        UserWarning,
        r"The '\w+' does not have many workers",
        r"lightning\.pytorch\.trainer\.connectors\.data_connector",
        "samples in memory are fetched faster without workers; for others, data.num_workers is an option",
    ),
    WarningFilter(
        UserWarning,
        r"GPU available but not used",
        r"lightning\.pytorch\.trainer\.setup",
        "trainer=cpu was asked for",
    ),
    WarningFilter(
        FutureWarning,
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        r"lightning\.pytorch\.utilities\._pytree",
        "Lightning 2.6 calls a torch function that torch 2.13 has renamed",
    ),
    WarningFilter(
        Warning,  # of torch 2.13 a DeprecationWarning, of 2.14 a FutureWarning
        r"`torch\.jit\.script_method` is deprecated",
        r"torch\.jit\._script",
        "torch.compile imports a module of torch that uses what torch has deprecated",
    ),
    WarningFilter(
        RuntimeWarning,
        r"Image size \(\d+ pixels\) exceeds limit",
        r"PIL\.Image",
        "a picture of that size is refused, and named",
    ),
    WarningFilter(
        UserWarning,
        r"Grad strides do not match bucket view strides",
        r"torch\.autograd\.graph",
        "ddp copies the gradient of a convolution with one input channel: a few numbers",
    ),
)

TORCH_GRAPH_COPY = WarningFilter(
    FutureWarning,
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"copyreg|torch\..*",
    "torch 2.13 copies its own graphs in a way that it has deprecated",
)


def ignore_warnings(*filters: WarningFilter) -> None:
    """Ignores the warnings in this process from now on."""
    for each in filters:
        warnings.filterwarnings("ignore", each.message, each.category, each.module)


@contextmanager
def warnings_ignored(*filters: WarningFilter) -> Iterator[None]:
    """Ignores warnings within a block: those that must be seen elsewhere, or whose category needs torch."""
    with warnings.catch_warnings():
        ignore_warnings(*filters)
        yield
