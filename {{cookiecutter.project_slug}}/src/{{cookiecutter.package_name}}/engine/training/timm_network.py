"""`model=timm`: any network of timm, with random or pretrained weights."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..spec import DataSpec
from .layers import Normalize

NUM_NAMED = 5  # networks with a similar name


class TimmNet(nn.Module):
    """Normalised pictures `(B, C, H, W)` to logits `(B, K)`; `name` is one of `timm.list_models()`, or one with a tag.

    `pretrained` takes the weights that timm downloads for that name, `weights` those of a file that timm saved of this
    network (.safetensors, .pth). The last layer is random if the file's has another number of labels.
    """

    def __init__(
        self, spec: DataSpec, name: str, pretrained: bool = False, weights: str | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if pretrained and weights is not None:
            raise UserError(f"model.net.pretrained=true and model.net.weights={weights} are two beginnings: give one.")
        self.spec, self.name, self.dropout = spec, name, dropout
        self.pretrained, self.weights = pretrained, weights
        _check_name(name)
        self.network = self._create()
        self.renormalize = _renormalize(self.network, spec)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.renormalize(x))
        return logits

    def before_training(self) -> None:
        """Tries the network on pictures of this size, and loads its first weights; a checkpoint needs neither."""
        channels, height, width = self.spec.input_shape
        try:
            with torch.inference_mode():
                self.eval()(torch.zeros(2, channels, height, width))
        except Exception as error:  # each network raises its own
            raise UserError(
                f"model.net.name={self.name} cannot take pictures of {height} x {width} pixels ({_reason(error)}): "
                "take another network, or pictures of another size."
            ) from error
        self.train()
        with torch.random.fork_rng(devices=[]):  # later random numbers do not depend on the first weights
            if self.pretrained:
                self.network.load_state_dict(self._downloaded())
            elif self.weights is not None:
                self.network.load_state_dict(self._from_file(Path(self.weights).expanduser()))

    def _create(self, **start: Any) -> nn.Module:
        channels, *size = self.spec.input_shape
        fixed = timm.get_pretrained_cfg(self.name)
        if fixed is not None and fixed.fixed_input_size:  # as transformers, whose positions depend on it
            start["img_size"] = tuple(size)
        return timm.create_model(
            self.name, num_classes=self.spec.num_outputs, in_chans=channels, drop_rate=self.dropout, **start
        )

    def _downloaded(self) -> dict[str, Tensor]:
        try:
            return self._create(pretrained=True).state_dict()
        except Exception as error:  # the connection, the hub or a name without weights
            raise UserError(
                f"model.net.pretrained=true does not get the weights of {self.name} ({_reason(error)}): give a file of "
                "them, as model.net.weights=<file>, or one of timm.list_pretrained()."
            ) from error

    def _from_file(self, file: Path) -> dict[str, Tensor]:
        """Detects weights that the file lacks, which timm ignores: they still have their random values."""
        if not file.is_file():
            raise UserError(f"model.net.weights={file} does not exist: give a file that timm saved, as .safetensors.")
        state = torch.random.get_rng_state()
        initial = dict(self._create().named_parameters())
        torch.random.set_rng_state(state)
        try:
            network = self._create(pretrained=True, pretrained_cfg_overlay={"file": str(file)})
        except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
            raise UserError(f"model.net.weights={file} does not fit {self.name}: {_reason(error)}.") from error
        last = _last_layers(network)
        for name, weight in network.named_parameters():
            # A weight that is initialised as all 0 or all 1 shows nothing.
            is_random = weight.requires_grad and bool(weight.min() < weight.max())
            if is_random and not name.startswith(last) and torch.equal(weight, initial[name]):
                raise UserError(f"model.net.weights={file} does not fit {self.name}: it has no {name}.")
        return network.state_dict()


def _last_layers(network: Any) -> tuple[str, ...]:
    """Prefixes of their weights' names; a distilled network has a second last layer, for the teacher's labels."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _check_name(name: str) -> None:
    """Refuses names of the hub (`hf-hub:`) too, which need a connection each time a checkpoint is loaded."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or ":" in name:
        close = difflib.get_close_matches(name, timm.list_models(), n=NUM_NAMED, cutoff=0.0)
        raise UserError(f"model.net.name={name} is no network of timm; {nearest(name, close)}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise UserError(f"model.net.name={name} has no such weights in timm; {nearest(name, tagged or [architecture])}")


def _renormalize(network: nn.Module, spec: DataSpec) -> Normalize:
    """From mean 0 and standard deviation 1 in the training split to the mean and deviation of the network's weights.

    Timm gives these for pixels from 0 to 1; in units of our normalised input they make one more `Normalize`.
    """
    given = timm.data.resolve_model_data_config(network)
    low, high = spec.input_range
    means, stds = (_for_channels(given[name], len(spec.mean)) for name in ("mean", "std"))
    channels = list(zip(means, stds, spec.mean, spec.std, strict=True))
    mean = tuple((low + (high - low) * theirs - ours) / std for theirs, _, ours, std in channels)
    std = tuple((high - low) * theirs / ours for _, theirs, _, ours in channels)
    return Normalize(dataclasses.replace(spec, mean=mean, std=std))


def _for_channels(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """Their average for another number of channels: for grey pictures timm sums the weights of the first layer."""
    return values if len(values) == num_channels else (sum(values) / len(values),) * num_channels


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:300].rstrip(".")
