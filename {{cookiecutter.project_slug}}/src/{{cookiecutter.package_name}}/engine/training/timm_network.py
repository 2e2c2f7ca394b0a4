"""`model=timm`: any network of timm, drawn at random or with weights that were trained before."""

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

NUM_NAMED = 5  # of the networks whose names are nearest


class TimmNet(nn.Module):
    """Normalised pictures `(B, C, H, W)` to logits `(B, K)`; `name` is one of `timm.list_models()`, or one with a tag.

    `pretrained` takes the weights that timm downloads for that name, `weights` those of a file of this network as
    timm saves it (.safetensors, .pth). The last layer is drawn anew where the file's has another number of labels.
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
        self.network = self._made()
        self.to_timms = _to_timms(self.network, spec)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.to_timms(x))
        return logits

    def before_training(self) -> None:
        """Tries the network on pictures of this size, and fetches its first weights; a checkpoint needs neither."""
        channels, height, width = self.spec.input_shape
        try:
            with torch.inference_mode():
                self.eval()(torch.zeros(2, channels, height, width))
        except Exception as error:  # each network has its own
            raise UserError(
                f"model.net.name={self.name} cannot take pictures of {height} x {width} pixels ({_reason(error)}): "
                "take another network, or pictures of another size."
            ) from error
        self.train()
        with torch.random.fork_rng(devices=[]):  # another beginning changes nothing that is drawn after it
            if self.pretrained:
                self.network.load_state_dict(self._downloaded())
            elif self.weights is not None:
                self.network.load_state_dict(self._from_file(Path(self.weights).expanduser()))

    def _made(self, **start: Any) -> nn.Module:
        channels, *size = self.spec.input_shape
        fixed = timm.get_pretrained_cfg(self.name)
        if fixed is not None and fixed.fixed_input_size:  # as for transformers: their positions are sized by it
            start["img_size"] = tuple(size)
        return timm.create_model(
            self.name, num_classes=self.spec.num_outputs, in_chans=channels, drop_rate=self.dropout, **start
        )

    def _downloaded(self) -> dict[str, Tensor]:
        try:
            return self._made(pretrained=True).state_dict()
        except Exception as error:  # of the network, of a hub, or of a name that has no weights
            raise UserError(
                f"model.net.pretrained=true does not get the weights of {self.name} ({_reason(error)}): give a file of "
                "them, as model.net.weights=<file>, or one of timm.list_pretrained()."
            ) from error

    def _from_file(self, file: Path) -> dict[str, Tensor]:
        """Timm passes by what a file lacks: a weight that is still as it was drawn was not in it."""
        if not file.is_file():
            raise UserError(f"model.net.weights={file} does not exist: give a file that timm saved, as .safetensors.")
        state = torch.random.get_rng_state()
        drawn = dict(self._made().named_parameters())
        torch.random.set_rng_state(state)
        try:
            made = self._made(pretrained=True, pretrained_cfg_overlay={"file": str(file)})
        except Exception as error:  # a damaged file raises whatever its bytes lead the reader to
            raise UserError(f"model.net.weights={file} does not fit {self.name}: {_reason(error)}.") from error
        last = _last_layers(made)
        for name, weight in made.named_parameters():
            # One that begins as all 0 or all 1 tells nothing.
            is_random = weight.requires_grad and bool(weight.min() < weight.max())
            if is_random and not name.startswith(last) and torch.equal(weight, drawn[name]):
                raise UserError(f"model.net.weights={file} does not fit {self.name}: it has no {name}.")
        return made.state_dict()


def _last_layers(network: Any) -> tuple[str, ...]:
    """What the names of their weights begin with; some networks have two, for a teacher's labels too."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _check_name(name: str) -> None:
    """Names of the hub (`hf-hub:`) are refused too: they would need a network each time a checkpoint is loaded."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or ":" in name:
        close = difflib.get_close_matches(name, timm.list_models(), n=NUM_NAMED, cutoff=0.0)
        raise UserError(f"model.net.name={name} is no network of timm; {nearest(name, close)}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise UserError(f"model.net.name={name} has no such weights in timm; {nearest(name, tagged or [architecture])}")


def _to_timms(network: nn.Module, spec: DataSpec) -> Normalize:
    """From mean 0 and deviation 1 in the training split to what the network's weights were trained on.

    Timm's mean and deviation hold for pixels from 0 to 1: as values of our normalised input they make one more
    `Normalize`, whose buffers are constants as well.
    """
    given = timm.data.resolve_model_data_config(network)
    low, high = spec.input_range
    means, stds = (_for_channels(given[name], len(spec.mean)) for name in ("mean", "std"))
    channels = list(zip(means, stds, spec.mean, spec.std, strict=True))
    mean = tuple((low + (high - low) * theirs - ours) / std for theirs, _, ours, std in channels)
    std = tuple((high - low) * theirs / ours for _, theirs, _, ours in channels)
    return Normalize(dataclasses.replace(spec, mean=mean, std=std))


def _for_channels(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """Their average where a picture has other channels: for a grey one timm adds up the weights of the first layer."""
    return values if len(values) == num_channels else (sum(values) / len(values),) * num_channels


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:300].rstrip(".")
