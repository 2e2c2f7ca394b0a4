"""Warnings of dependencies that a user can do nothing about; all others are shown, and are errors in the tests."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class WarningFilter(NamedTuple):
    """A warning that is ignored; the comment above each says why."""

    category: type[Warning]
    message: str  # a regular expression for its beginning
    module: str  # a regular expression for the module that the warning names


IGNORED_WARNINGS = (
    # metrics.csv lies in the run directory, where Hydra has put its own files before
    WarningFilter(UserWarning, r"Experiment logs directory .* exists and", r"lightning\.fabric\.loggers\.csv_logs"),
    # figures are logged once an epoch, not every few steps
    WarningFilter(UserWarning, r"The number of training batches \(\d+\) is smaller than", r"lightning\.pytorch\.loops"),
    # a run that starts from another run's checkpoint writes into its own directory
    WarningFilter(UserWarning, r"The dirpath has changed from", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    # a resumed or restarted run writes into the directory that it had
    WarningFilter(UserWarning, r"Checkpoint directory .* exists and is not", r"lightning\.pytorch\.callbacks"),
    # a run whose figures are not there yet goes on, and says at its end which checkpoint is the best one
    WarningFilter(UserWarning, r"`ModelCheckpoint\(monitor=.* could not find the monitored", r"lightning\.pytorch"),
    # a run may go on without a callback or with other options of it, which then begins anew
    WarningFilter(UserWarning, r"Be aware that when using `ckpt_path`, callbacks used", r"lightning\.pytorch"),
    # overfit_batches means the same few samples again and again
    WarningFilter(UserWarning, r"You requested to overfit but enabled", r"lightning\.pytorch\.trainer\.connectors"),
    # samples in memory are fetched faster without workers; for others, data.num_workers is an option
    WarningFilter(UserWarning, r"The '\w+' does not have many workers", r"lightning\.pytorch\.trainer\.connectors"),
    # trainer=cpu was asked for
    WarningFilter(UserWarning, r"GPU available but not used", r"lightning\.pytorch\.trainer\.setup"),
    # Lightning 2.6 calls a torch function that torch 2.13 has renamed
    WarningFilter(FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is", r"lightning\.pytorch\.utilities\._pytree"),
    # torch.compile imports what torch has deprecated: a DeprecationWarning of torch 2.13, a FutureWarning of 2.14
    WarningFilter(Warning, r"`torch\.jit\.script_method` is deprecated", r"torch\.jit\._script"),
    # a picture of that size is refused, and named
    WarningFilter(RuntimeWarning, r"Image size \(\d+ pixels\) exceeds limit", r"PIL\.Image"),
    # the checkpoints of this project hold plain data alone, whatever `save_hyperparameters` was given
    WarningFilter(UserWarning, r"Attribute '\w+' is an instance of `nn.Module`", r"lightning\.pytorch\.utilities"),
    # the training split calibrates a quantized file, in any order
    WarningFilter(UserWarning, r"Your `test_dataloader`'s sampler has shuffling", r"lightning\.pytorch\.trainer"),
    # matplotlib converts the tensors that torchmetrics plots in a way that numpy 2 has deprecated
    WarningFilter(DeprecationWarning, r"__array__ implementation doesn't accept a copy", r"matplotlib\.cbook"),
    # ddp copies the gradient of a convolution with one input channel: a few numbers
    WarningFilter(UserWarning, r"Grad strides do not match bucket view strides", r"torch\.autograd\.graph"),
)

# torch 2.13 copies its own graphs in a way that it has deprecated
TORCH_GRAPH_COPY = WarningFilter(FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is", r"copyreg|torch\..*")
# two inputs share their free axes on purpose
ONNX_AXIS_NAMES = WarningFilter(UserWarning, r"# The axis name: \w+ will not be used", r"torch\.onnx\..*")


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
