"""The starting point of a run, other than new weights.

`ckpt_path` continues a training, with its optimizer and its epoch. `weights` begins another one with nothing but
the weights of an earlier one, for data that may have other labels: fine-tuning.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import rendezvous
from ..config.command_line import Config
from ..config.hydra_versions import instantiate
from ..config.validation import parameters_of
from ..console import shown
from ..errors import UserError
from ..runs import run_record
from ..spec import DataSpec
from .callbacks.optimization import freeze_named, shortened
from .checkpoints import Checkpoint, from_newest_checkpoint, load, refuse_foreign_code
from .layers import Normalize
from .options import TrainOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """`spec` describes the data that they were trained on; None if the file does not contain it."""

    path: Path
    tensors: dict[str, Tensor]
    spec: Any


def with_starting_point(config: Config) -> Config:
    """Resolves `resume=`, and refuses a starting point that cannot be used, before any process is started."""
    for section in ("data", "model"):  # a checkpoint of the run could not be loaded again
        refuse_foreign_code(config[section], section)
    config = config if rendezvous.is_follower() else from_newest_checkpoint(config)
    ckpt_path, weights = config["ckpt_path"], config["weights"]
    if ckpt_path is not None and weights is not None:
        raise UserError(f"ckpt_path={ckpt_path} and weights={weights} are two starts of a run: leave one out.")
    if ckpt_path is not None:
        _refuse_finished_run(config, load(Path(ckpt_path)))
    if weights is not None:
        read_weights(Path(weights))
    return config


def _refuse_finished_run(config: Config, checkpoint: Checkpoint) -> None:
    """Continued without an epoch left to train, it would lose the metrics of its training."""
    progress = checkpoint.contents["loops"]["fit_loop"]["epoch_progress"]["current"]
    num_epochs, max_epochs = progress["processed"], config["trainer"].get("max_epochs") or 0
    has_finished = run_record.read_state(Path(config["paths"]["output_dir"])) == "finished"
    if config.get("resume") and has_finished and 0 < max_epochs <= num_epochs:
        raise UserError(
            f"resume={config['resume']} has come to its end, after {num_epochs} epochs: give trainer.max_epochs=."
        )


def load_starting_point(
    model: pl.LightningModule, section: Config, spec: Any, options: TrainOptions
) -> tuple[Checkpoint | None, frozenset[str], Any]:
    """Freezes weights and loads the starting point into `model`, which was built from `section` and sized by `spec`.

    Returns the checkpoint of a training that is continued, the parameters that come from pretrained weights, and `spec`
    with the mean and the deviation that belong to them.
    """
    for part in model.modules():  # a network that downloads weights, as `TimmNet`
        getattr(part, "before_training", lambda: None)()
    if options.freeze is not None:
        freeze_named(model, options.freeze)
    checkpoint, names = None, frozenset[str]()
    if options.ckpt_path is not None:
        checkpoint = load(Path(options.ckpt_path), check_sum=False)  # `with_starting_point` has compared it
        checkpoint.load_weights_into(model)
        names, spec = checkpoint.pretrained_names, _with_statistics(spec, checkpoint.spec)
    elif options.weights is not None:
        names, spec = transfer(read_weights(Path(options.weights)), model, section, spec)
    if options.pretrained_lr_factor != 1 and not names:
        raise UserError(
            f"pretrained_lr_factor={options.pretrained_lr_factor} is for pretrained weights: give weights=<file>."
        )
    return checkpoint, names, spec


def _with_statistics(spec: Any, of: Any) -> Any:
    """On data that has changed since, mean and deviation are still those of the weights."""
    return replace(spec, mean=of.mean, std=of.std) if isinstance(of, DataSpec) else spec


def read_weights(path: Path) -> Weights:
    """Reads a checkpoint of this project, the `model.safetensors` of a bundle, or such a file of a network alone."""
    path = path.expanduser()
    if path.suffix != ".safetensors":
        checkpoint = load(path, option="weights")
        return Weights(path, checkpoint.contents["state_dict"], checkpoint.spec)
    if not path.is_file():
        raise UserError(f"weights={path} does not exist: give the path of a .ckpt or .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # `file` is no mapping
            spec = json.loads((file.metadata() or {}).get("spec", "null"))
        return Weights(path, tensors, None if spec is None else DataSpec.from_dict(spec))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights={path} cannot be read, it is damaged or no safetensors ({reason}).") from error


def transfer(
    weights: Weights, model: pl.LightningModule, section: Config, spec: Any
) -> tuple[frozenset[str], DataSpec | None]:
    """Copies the tensors that fit by name and shape; returns the parameters among them, and `spec`.

    Parameters of the last layer start anew, unless the labels are the same in the same order. Mean and standard
    deviation of the input stay those of `weights`, and go into `spec`, if the raw input is of the same kind.
    """
    own, given = model.state_dict(), weights.tensors
    trained, present = (of if isinstance(of, DataSpec) else None for of in (weights.spec, spec))
    if trained and present and trained.columns and _columns(trained) != _columns(present):
        raise UserError(f"weights={weights.path} was trained on other columns or categories: give the same.")
    if not own.keys() & given.keys():  # of the network alone, without the module around it
        place = _place(model, given)
        given = {f"{place}{name}": tensor for name, tensor in given.items()}
    head = set[str]()
    if present and (trained is None or _outputs(trained) != _outputs(present)):
        head = head_parameters(model, section, present)
    normalisations = [(name, part) for name, part in model.named_modules() if isinstance(part, Normalize)]
    statistics = {f"{place}.{name}" for place, part in normalisations for name, _ in part.named_buffers()}
    keeps_statistics = trained and present and _raw_input(trained) == _raw_input(present)
    skipped = head if keeps_statistics else head | statistics
    taken = [name for name in own if name not in skipped and _fits(given.get(name), own[name])]
    _refuse_misfit(weights.path, model, given, head, taken)
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    anew = [name for name in own if name not in taken]
    named = f", {len(anew)} start anew: {shortened(anew)}" if anew else ""
    log.info("starts from %s: %d tensors taken%s", shown(weights.path), len(taken), named)
    names = frozenset(name for name, _ in model.named_parameters() if name in taken)
    return names, _with_statistics(spec, trained) if statistics & set(taken) else spec


def head_parameters(model: pl.LightningModule, section: Config, spec: DataSpec) -> set[str]:
    """Names of the parameters whose shape depends on the number of labels.

    A second network with two more labels shows them, because neither a name nor a position does so for every network.
    It draws no random numbers of this process. A module whose `net` is not built from a DataSpec has none.
    """
    if "spec" not in parameters_of(section["_target_"], "model") or not section.get("net", {}).get("_partial_"):
        return set()
    with torch.random.fork_rng(devices=[]):
        make_net = instantiate(section["net"])
        other = make_net(replace(spec, labels=(*spec.labels, "one more", "another"), label_counts=()))
    shapes = {name: weight.shape for name, weight in other.named_parameters()}
    place, own = _place(model, shapes), dict(model.named_parameters())
    return {f"{place}{name}" for name, shape in shapes.items() if own[f"{place}{name}"].shape != shape}


def _place(model: nn.Module, names: Iterable[str]) -> str:
    """The prefix of a network within the module that contains it, such as `net.1.`, by the names of its tensors."""
    own, places = set(model.state_dict()), ["", *(f"{name}." for name, _ in model.named_modules() if name)]
    return max(places, key=lambda place: sum(f"{place}{name}" in own for name in names))


def _columns(spec: DataSpec) -> list[tuple[str, list[str] | None]]:
    return [(column["name"], column["categories"]) for column in spec.columns]


def _outputs(spec: DataSpec) -> tuple[str, tuple[str, ...], str]:
    return spec.task, spec.labels, spec.target


def _raw_input(spec: DataSpec) -> tuple[str, tuple[float, float]]:
    return spec.input_dtype, spec.input_range


def _fits(given: Tensor | None, own: Tensor) -> bool:
    return given is not None and given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _refuse_misfit(path: Path, model: nn.Module, given: dict[str, Tensor], head: set[str], taken: list[str]) -> None:
    """Refuses weights of which less than half fit: they are of another network, which training would hide."""
    body = {name: weight for name, weight in model.named_parameters() if name not in head}
    missing = [name for name in body if name not in taken]
    num_weights, num_missing = (sum(body[name].numel() for name in names) for names in (body, missing))
    if not body or 2 * num_missing > num_weights:
        first = next(iter(missing or head))
        there = f"{tuple(given[first].shape)} there" if first in given else "not there"
        raise UserError(
            f"weights={path} fits {num_weights - num_missing:,} of the {num_weights:,} weights that could be "
            f"kept ('{first}' is {tuple(model.get_parameter(first).shape)} here, {there}): "
            "choose the model and model.net that it was trained with."
        )
    for name, weight in model.named_parameters():
        if name not in taken and not weight.requires_grad:
            raise UserError(f"freeze holds '{name}', which starts anew and would never learn: leave it out.")
