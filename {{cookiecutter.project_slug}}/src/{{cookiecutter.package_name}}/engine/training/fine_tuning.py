"""The starting point of a run, other than new weights.

`ckpt_path` continues a training, with its optimizer and its epoch. `model.weights` begins another one with nothing but
the weights of an earlier one, for data that may have other labels: fine-tuning.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import rendezvous
from ..config.command_line import Config
from ..console import shown
from ..errors import UserError
from ..runs import run_record
from ..spec import DataSpec
from .base_module import BaseModule
from .build import check_optimizer
from .checkpoints import Checkpoint, from_newest_checkpoint, load, refuse_foreign_code
from .optimizers import head_parameters, shortened

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """`spec` describes the data that they were trained on; None if the file does not contain it."""

    path: Path
    tensors: dict[str, Tensor]
    spec: DataSpec | None


def with_starting_point(config: Config) -> Config:
    """Resolves `resume=`, and refuses a starting point that cannot be used, before any process is started."""
    for section in ("data", "model"):  # a checkpoint of the run could not be loaded again
        refuse_foreign_code(config[section], section)
    config = config if rendezvous.is_follower() else from_newest_checkpoint(config)
    ckpt_path, weights = config["ckpt_path"], config["model"].get("weights")
    if ckpt_path is not None and weights is not None:
        raise UserError(f"ckpt_path={ckpt_path} and model.weights={weights} are two starts of a run: leave one out.")
    if ckpt_path is not None:
        _refuse_finished_run(config, load(Path(ckpt_path)))
    if weights is not None:
        read_weights(Path(str(weights)))  # its type is checked later
    return config


def _refuse_finished_run(config: Config, checkpoint: Checkpoint) -> None:
    """Continued without an epoch left to train, it would lose the metrics of its training."""
    num_epochs, max_epochs = checkpoint.epoch + 1, config["trainer"].get("max_epochs") or 0
    has_finished = run_record.read_state(Path(config["paths"]["output_dir"])) == "finished"
    if config.get("resume") and has_finished and 0 < max_epochs <= num_epochs:
        raise UserError(
            f"resume={config['resume']} has come to its end, after {num_epochs} epochs: give trainer.max_epochs=."
        )


def load_starting_point(model: BaseModule, ckpt_path: str | None) -> Checkpoint | None:
    """Loads the starting point into `model`; returns the checkpoint of a training that is continued."""
    checkpoint = None
    if ckpt_path is not None:
        checkpoint = load(Path(ckpt_path), check_sum=False)  # `with_starting_point` has compared it
        checkpoint.load_weights_into(model)
    elif model.weights is not None:
        transfer(read_weights(Path(model.weights)), model)
    if model.pretrained_lr_factor != 1 and not model.pretrained_names:
        raise UserError(
            f"model.pretrained_lr_factor={model.pretrained_lr_factor} is for pretrained weights: give model.weights=."
        )
    check_optimizer(model)
    return checkpoint


def read_weights(path: Path) -> Weights:
    """Reads a checkpoint of this project, the `model.safetensors` of a bundle, or such a file of a network alone."""
    path = path.expanduser()
    if path.suffix != ".safetensors":
        checkpoint = load(path, option="model.weights")
        return Weights(path, checkpoint.state_dict, checkpoint.spec)
    if not path.is_file():
        raise UserError(f"model.weights={path} does not exist: give the path of a .ckpt or .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # `file` is no mapping
            spec = json.loads((file.metadata() or {}).get("spec", "null"))
        return Weights(path, tensors, None if spec is None else DataSpec.from_dict(spec))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model.weights={path} cannot be read, it is damaged or no safetensors ({reason}).") from error


def transfer(weights: Weights, model: BaseModule) -> None:
    """Copies the tensors that fit by name and shape, and sets `model.pretrained_names` to the parameters among them.

    Parameters of the last layer start anew, unless the labels are the same in the same order. Mean and standard
    deviation of the input stay those of `weights`, and go into `model.spec`, if the raw input is of the same kind.
    """
    own, given, trained = model.state_dict(), weights.tensors, weights.spec
    if trained is not None and trained.columns and _columns(trained) != _columns(model.spec):
        raise UserError(f"model.weights={weights.path} was trained on other columns or categories: give the same.")
    if not own.keys() & given.keys():  # of the network alone, without the normalisation before it
        given = {f"net.1.{name}": tensor for name, tensor in given.items()}
    head = set()
    if trained is None or _outputs(trained) != _outputs(model.spec):
        head = {f"net.1.{name}" for name in head_parameters(model.net[1], model.make_net, model.spec)}
    statistics = {f"net.0.{name}" for name, _ in model.net[0].named_buffers()}
    if trained is not None and _raw_input(trained) == _raw_input(model.spec):
        statistics = set()
    taken = [name for name in own if name not in head | statistics and _fits(given.get(name), own[name])]
    _refuse_misfit(weights.path, model, given, head, taken)
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    if trained is not None and "net.0.mean" in taken:
        model.spec = replace(model.spec, mean=trained.mean, std=trained.std)
    model.pretrained_names = frozenset(name for name, _ in model.named_parameters() if name in taken)
    anew = [name for name in own if name not in taken]
    named = f", {len(anew)} start anew: {shortened(anew)}" if anew else ""
    log.info("starts from %s: %d tensors taken%s", shown(weights.path), len(taken), named)


def _columns(spec: DataSpec) -> list[tuple[str, list[str] | None]]:
    return [(column["name"], column["categories"]) for column in spec.columns]


def _outputs(spec: DataSpec) -> tuple[str, tuple[str, ...], str]:
    return spec.task, spec.labels, spec.target


def _raw_input(spec: DataSpec) -> tuple[str, tuple[float, float]]:
    return spec.input_dtype, spec.input_range


def _fits(given: Tensor | None, own: Tensor) -> bool:
    return given is not None and given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def _refuse_misfit(path: Path, model: BaseModule, given: dict[str, Tensor], head: set[str], taken: list[str]) -> None:
    """Refuses weights of which less than half fit: they are of another network, which training would hide."""
    body = {name: weight for name, weight in model.named_parameters() if name not in head}
    missing = [name for name in body if name not in taken]
    num_weights, num_missing = (sum(body[name].numel() for name in names) for names in (body, missing))
    if not body or 2 * num_missing > num_weights:
        first = next(iter(missing or head))
        there = f"{tuple(given[first].shape)} there" if first in given else "not there"
        raise UserError(
            f"model.weights={path} fits {num_weights - num_missing:,} of the {num_weights:,} weights that could be "
            f"kept ('{first}' is {tuple(model.get_parameter(first).shape)} here, {there}): "
            "choose the model and model.net that it was trained with."
        )
    for name, weight in model.named_parameters():
        if name not in taken and not weight.requires_grad:
            raise UserError(f"model.freeze holds '{name}', which starts anew and would never learn: leave it out.")
