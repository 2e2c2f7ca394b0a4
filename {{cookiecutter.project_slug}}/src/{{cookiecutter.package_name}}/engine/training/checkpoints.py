"""Checkpoints of this project: how they are found, read safely and turned into a model and its data again."""

import inspect
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_object

from ..config import CONFIG_DIRS, PACKAGE
from ..config.command_line import Config
from ..console import shown
from ..errors import Fault, UserError
from ..runs import run_record
from ..spec import DataSpec, plain_spec, read_spec
from .build import build_datamodule, build_model
from .checkpoint_io import LAST, Contents, is_damaged, sum_file
from .options import TrainOptions

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of the section `project` of a checkpoint; raised with every change that `load` cannot read
# What a configuration that comes from a checkpoint may name, beside what the owner's own options name; anything else
# could run foreign code.
TRUSTED = (PACKAGE, "torch", "lightning", "torchmetrics", "kornia")
# Options of `data.` that are paths: of its files, and of anything.
DATA_PATHS = ("root", "path")
PATHS = (*DATA_PATHS, "cache_dir")
# Options of `data.` that move samples from one split to another.
SPLIT_OPTIONS = ("val_fraction", "test_fraction", "split_seed")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint: tensors and plain data, loaded with `weights_only=True`."""

    path: Path
    epoch: int
    step: int
    config: Config
    spec: Any  # a DataSpec, or other plain data from which the network is sized, or None
    contents: Contents
    pretrained_names: frozenset[str]  # of the parameters that its training had taken from `weights`
    figures: dict[str, float]  # of the last epoch, by their logged names
    followed: dict[str, str | None]  # what is monitored in place of figures that the model does not log
    monitor: str | None  # the figure by which the best checkpoint is chosen
    options: TrainOptions
    callbacks: Config  # the section of the options
    limits: tuple[int, int]  # the Trainer's `max_epochs` and `max_steps`; -1 for none

    def datamodule(self, overrides: Mapping[str, Any]) -> pl.LightningDataModule:
        """Builds the data that the model was trained on; `overrides` are options of `data.` that replace its own.

        Refuses another split, which would test on samples that the model was trained on.
        """
        for name in SPLIT_OPTIONS:
            value, trained = overrides.get(name), self.config["data"].get(name)
            if value is not None and value != trained:
                raise UserError(
                    f"data.{name}={value} would test on samples that the model was trained on: "
                    f"leave it at {trained}, or train with it."
                )
        # A table, for example, takes the columns and labels that the training found.
        datamodule = build_datamodule({**self.config["data"], **overrides}, self.config["seed"], trained=self.spec)
        self._refuse_other_data(getattr(datamodule, "spec", None), overrides)
        return datamodule

    def _refuse_other_data(self, spec: Any, overrides: Mapping[str, Any]) -> None:
        if not isinstance(spec, DataSpec) or not isinstance(self.spec, DataSpec):
            return
        if spec.labels != self.spec.labels:
            found, trained = (", ".join(labels) for labels in (spec.labels, self.spec.labels))
            raise UserError(
                f"data has the labels {found}, but the model was trained on {trained}: it must have the same."
            )
        if spec.input_shape != self.spec.input_shape:
            raise UserError(f"data has samples of {spec.input_shape}, but the model takes {self.spec.input_shape}.")
        options = [name for name in DATA_PATHS if name in self.config["data"]]
        given = any(overrides.get(name) is not None for name in options)
        if spec.fingerprint != self.spec.fingerprint and not given:
            named = " or ".join(f"data.{name}" for name in options) or "data"
            raise UserError(
                f"the files of {named} are others than in training, so what is left for the test may have been "
                f"trained on: restore them{f', or give another {named} for the test alone' if options else ''}."
            )

    def model(self) -> pl.LightningModule:
        """Builds the trained model on the CPU, without the data."""
        model = build_model(self.config["model"], self.spec)
        self.load_weights_into(model)
        return model

    def load_weights_into(self, model: pl.LightningModule) -> None:
        """Refuses a network whose weights have other shapes, as after a change of its code."""
        try:
            model.on_load_checkpoint(self.contents)
            model.load_state_dict(self.contents["state_dict"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"ckpt_path={self.path} does not fit the network as it is now: {reason}") from error


def self_description(
    config: Config, options: TrainOptions, spec: Any, pretrained_names: frozenset[str]
) -> dict[str, Any]:
    """Returns what `CheckpointContents` stores and `load` reads back; paths become absolute, valid in any folder."""
    data = config["data"]
    paths = {name: Path(data[name]).expanduser() for name in PATHS if data.get(name) is not None}
    absolute = {name: str(path.resolve()) for name, path in paths.items() if path.exists()}
    return {
        "package": PACKAGE,
        "format_version": FORMAT_VERSION,
        "config": {"data": {**data, **absolute}, "model": config["model"], "seed": options.seed},
        "options": asdict(options),
        "callbacks": config.get("callbacks") or {},
        "limits": [config["trainer"].get(name) or -1 for name in ("max_epochs", "max_steps")],
        "spec": plain_spec(spec),
        "pretrained_names": sorted(pretrained_names),
    }


def load(path: Path, option: str = "ckpt_path", check_sum: bool = True) -> Checkpoint:
    """Refuses a file that is missing, damaged, of another project or version, or names code outside `TRUSTED`.

    `option` is the one that gave the path, for the error message.
    """
    run_record.check_checkpoint(path, option)
    if check_sum and is_damaged(path):
        raise UserError(f"{option}={path} is damaged: its sha256 is not the one that {sum_file(path).name} says.")
    try:
        # Mapped: what is not used, as the optimizer's state where nothing is trained, is never read.
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{option}={path} cannot be read, it is damaged or no checkpoint ({reason}).") from error
    project = contents.get("project") if isinstance(contents, dict) else None
    if not isinstance(project, dict) or project.get("package") != PACKAGE:
        raise UserError(f"{option}={path} was not written by {PACKAGE}: it can only be used where it was trained.")
    _check_version(project.get("format_version"), f"{option}={path}")
    refuse_foreign_code(project["config"], f"{option}={path}")
    return Checkpoint(
        path=path,
        epoch=contents["epoch"],
        step=contents["global_step"],
        config=project["config"],
        spec=read_spec(project["spec"]),
        contents=Contents(contents),
        pretrained_names=frozenset(project["pretrained_names"]),
        figures=contents["figures"],
        followed=contents["followed"],
        monitor=contents["monitor"],
        options=TrainOptions(**project["options"]),
        callbacks=project["callbacks"],
        limits=tuple(project["limits"]),
    )


def _check_version(version: object, source: str) -> None:
    if not isinstance(version, int):
        raise UserError(f"{source} was written by version 0.9 of the template, which was never released: train again.")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{source} was written by another version of the template (format version {version}, this project reads "
            f"{FORMAT_VERSION}): update the project."
        )


def refuse_foreign_code(section: Any, source: str) -> None:
    """Called before training too, because a checkpoint that names such a class could not be loaded again.

    A checkpoint holds resolved values; an interpolation in one would be resolved when the model is built.
    """
    if isinstance(section, str) and "${" in section:
        raise UserError(f"{source} holds the interpolation '{section}', which could run foreign code: it is not used.")
    if isinstance(section, list):
        for item in section:
            refuse_foreign_code(item, source)
    if not isinstance(section, Mapping):
        return
    target = section.get("_target_")
    if target is not None and not _is_trusted(str(target)):
        if (package := _missing_package(str(target))) is not None:
            raise UserError(
                f"{source} needs {package}, which is not installed, because the project was generated without it: run "
                f"'pip install {package}', or choose another."
            )
        raise UserError(
            f"{source} names _target_={target}, which is no class of {', '.join(trusted_packages())} and could run "
            f"foreign code: name it in a file of configs/, or move it into the package {PACKAGE}."
        )
    for value in section.values():
        refuse_foreign_code(value, source)


def _is_trusted(target: str) -> bool:
    """Whether `configs/` name the target, or it is a class of a trusted package: `<package>.os.system` is neither."""
    if target in _named_targets():
        return True
    if target.split(".")[0] not in trusted_packages():
        return False
    try:
        found = get_object(target)
    except Exception:
        return False
    return inspect.isclass(found) and found.__module__.split(".")[0] in trusted_packages()


def _missing_package(target: str) -> str | None:
    """Returns the package that a class of this project needs and that is not installed, if that is the reason."""
    if target.startswith(f"{PACKAGE}."):
        try:
            import_module(target.rpartition(".")[0])
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            return missing if missing and missing != PACKAGE else None
        except Exception:  # a module may raise anything as it is imported: it is reported as what cannot be used
            return None
    return None


@cache
def _named_targets() -> frozenset[str]:
    """What the files in the owner's `configs/` name, functions among them; nothing of Python's own library."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in CONFIG_DIRS[0].rglob("*.yaml"))
    named = re.findall(r"""\b_target_:\s*["']?([A-Za-z_][\w.]*)""", re.sub("#.*", "", text))
    return frozenset(target for target in named if target.split(".")[0] not in sys.stdlib_module_names)


def trusted_packages() -> tuple[str, ...]:
    """`TRUSTED`, and the packages of what the owner's `configs/` name."""
    return (*TRUSTED, *sorted({target.split(".")[0] for target in _named_targets()} - {*TRUSTED}))


def from_newest_checkpoint(config: Config) -> Config:
    """With `resume=`, or when processes were restarted: sets `ckpt_path` to the newest checkpoint of the run, if any.

    It replaces the starting point of the run, which it contains.
    """
    run_dir = config["paths"]["output_dir"]
    if not run_record.goes_on(run_dir, config.get("resume")):
        return config
    newest = newest_checkpoint(Path(run_dir) / "checkpoints")
    return {**config, "ckpt_path": str(newest), "weights": None}


def newest_checkpoint(folder: Path) -> Path:
    """The undamaged checkpoint of the latest step; warns of those that cannot be read.

    Checksums take time, so they are compared from the newest file on, until one is undamaged.
    """

    def age(path: Path) -> tuple[int, bool]:
        try:
            return load(path, check_sum=False).step, path.name == LAST
        except UserError:
            return sys.maxsize, False  # to be reported below

    damaged = []
    for path in sorted(folder.glob("*.ckpt"), key=age, reverse=True):
        try:
            load(path)
        except UserError as error:
            damaged.append(str(error))
            continue
        for sentence in damaged:
            log.warning("warning     %s", sentence)
        return path
    raise Fault(f"no checkpoint in {shown(folder)} can be read ({damaged[0].rstrip('.')}): start another run.")
