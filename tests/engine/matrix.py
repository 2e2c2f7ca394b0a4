"""Trains several models in several ways with the engine's own `train`, one after the other in the same processes.

python matrix.py <folder> '[["cnn", "ddp", ["strategy=ddp", "trainer.devices=2"]]]'

Each run of a model with some options leaves its run directory in `<folder>/<model>/<name>`. The processes are those of
torchrun, or with `--launch` those that the engine starts itself.
"""

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from digit_classifier.engine import DataSpec, Normalize, loss_normalizer
from digit_classifier.engine.config import CONFIG_DIRS
from digit_classifier.engine.config.command_line import register_with_hydra
from digit_classifier.engine.config.hydra_versions import VERSION_BASE
from digit_classifier.engine.distributed.launch import launch
from digit_classifier.engine.distributed.plan import Plan, make_plan
from digit_classifier.engine.training import checkpoints
from digit_classifier.engine.warning_filters import IGNORED_WARNINGS, ignore_warnings
from digit_classifier.train import run

checkpoints.TRUSTED = (*checkpoints.TRUSTED, "matrix")  # else no checkpoint with the models below is loaded
UNCOUNTED = -1  # a pixel or a word that does not take part in the loss
# Batches that do not divide by the number of devices; of the sets in this file, the last one has fewer samples.
OPTIONS = (
    "trainer=cpu",
    "trainer.precision=64-true",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "rehearse_export=false",
    "data.batch_size=61",
)
MODELS: dict[str, tuple[str, ...]] = {
    "cnn": ("trainer.gradient_clip_val=1",),
    "mlp": ("model=mlp", "data.max_shift=1"),
    "transformer": ("model=mlp",),
    "batch_norm": ("model=mlp", "trainer.sync_batchnorm=true"),
    "unet": (),
    "text": (),
    "ema": ("model=mlp", "ema_decay=0.9", "trainer.gradient_clip_val=1"),
    "class_weights": ("model=mlp", "model.class_weights=[1,2,3,4,5,6,7,8,9,10]"),
}


class Transformer(nn.Module):
    """The rows of a picture `(B, 1, 8, 8)` as words, to logits `(B, K)`."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(8, 16))
        self.word = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, spec.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.word(x[:, 0]) + self.place).mean(dim=1))
        return logits


class BatchNormNet(nn.Sequential):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, spec.num_outputs),
        )  # fmt: skip


class Elements(pl.LightningModule):
    """Plain Lightning code with a loss over the elements of a batch that count, such as pixels or words."""

    def __init__(self) -> None:
        super().__init__()
        self.val_acc, self.test_acc = (MulticlassAccuracy(2, average="micro", ignore_index=UNCOUNTED) for _ in range(2))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, ignore_index=UNCOUNTED, reduction="sum")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.losses(x, y) / loss_normalizer(batch, lambda batch: (batch[1] != UNCOUNTED).sum())
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
        return loss + 1e-3 * sum(weight.square().mean() for weight in self.net[-1].parameters())

    def evaluate(self, split: str, accuracy: MulticlassAccuracy, batch: Any) -> None:
        x, y = batch
        accuracy.update(self(x).argmax(1), y)
        num_counted = int((y != UNCOUNTED).sum())
        self.log(f"{split}/loss", self.losses(x, y) / max(1, num_counted), batch_size=num_counted)
        self.log(f"{split}/acc", accuracy)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("val", self.val_acc, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate("test", self.test_acc, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.003)


class UNet(Elements):
    """Pictures `(B, 1, 8, 8)` to logits `(B, 2, 8, 8)`."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.normalize = Normalize(spec)
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Dropout2d(0.1))
        self.bottom = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.net = nn.Sequential(nn.Conv2d(24, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(self.normalize(x))
        coarse = F.interpolate(self.bottom(F.max_pool2d(fine, 2)), scale_factor=2.0)
        logits: Tensor = self.net(torch.cat([fine, coarse], dim=1))
        return logits


class Text(Elements):
    """Words `(B, T)` to logits `(B, 2, T)`."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.read = nn.Embedding(50, 16), nn.GRU(16, 16, batch_first=True)
        self.net = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.read(self.words(x))[0])
        return logits.transpose(1, 2)


class ElementsData(pl.LightningDataModule):
    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def samples(self, first: int, last: int) -> TensorDataset:
        raise NotImplementedError

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples(0, 200), self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        return DataLoader(self.samples(200, 233), 16)

    def test_dataloader(self) -> Any:
        return DataLoader(self.samples(233, 274), 13)


class Masks(ElementsData):
    """Pictures, and for each pixel whether it is bright; most pixels of most pictures are not labelled."""

    spec = DataSpec("masks", "regression", (1, 8, 8), "float32", (0.0, 1.0), (), (0.5,), (0.3,))

    def samples(self, first: int, last: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(1)
        pictures = torch.rand(274, 1, 8, 8, generator=generator)
        unlabelled = torch.rand(274, 8, 8, generator=generator) > torch.rand(274, 1, 1, generator=generator) ** 3
        masks = (pictures[:, 0] > 0.6).long().masked_fill(unlabelled, UNCOUNTED)
        return TensorDataset(pictures[first:last], masks[first:last])


class Sentences(ElementsData):
    """Words, and for each whether it is larger than the one before; the rest of a row of 12 is padding."""

    def samples(self, first: int, last: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(1, 50, (274, 12), generator=generator)
        is_padding = torch.arange(12) >= torch.randint(1, 13, (274, 1), generator=generator)
        is_larger = (words > words.roll(1, dims=1)).long().masked_fill(is_padding, UNCOUNTED)
        return TensorDataset(words.masked_fill(is_padding, 0)[first:last], is_larger[first:last])


OWN = {
    "transformer": {"net": {"_target_": "matrix.Transformer", "_partial_": True}},
    "batch_norm": {"net": {"_target_": "matrix.BatchNormNet", "_partial_": True}},
    "unet": {"_target_": "matrix.UNet"},
    "text": {"_target_": "matrix.Text"},
}
OWN_DATA = {"unet": "matrix.Masks", "text": "matrix.Sentences"}


def composed(folder: Path, model: str, name: str, options: list[str]) -> dict[str, Any]:
    """The configuration of `train`, with models and data of this file in the place of the shipped ones."""
    given = [*OPTIONS, *MODELS[model], *options, f"paths.output_dir={folder / model / name}"]
    config: Any = OmegaConf.to_container(compose("train", given), resolve=True)
    if model in OWN:
        config["model"] = {**config["model"], **OWN[model]} if "net" in OWN[model] else OWN[model]
    if model in OWN_DATA:
        given_data = {option: config["data"][option] for option in ("batch_size", "micro_batch_size")}
        config["data"] = {"_target_": OWN_DATA[model], **given_data}
    return {**config, "options": []}


def run_all(_: Any, plan: Plan | None, configs: list[dict[str, Any]]) -> dict[str, float]:
    """In each process."""
    for config in configs:
        Path(config["paths"]["output_dir"]).mkdir(parents=True, exist_ok=True)
        run(config, make_plan(config))
    return {}


def main(folder: str, runs: str, *flags: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ignore_warnings(*IGNORED_WARNINGS)
    register_with_hydra()
    with initialize_config_dir(str(CONFIG_DIRS[0]), **VERSION_BASE):
        configs = [composed(Path(folder), *each) for each in json.loads(runs)]
    if "--launch" in flags:
        launch(partial(run_all, configs=configs), configs[0])
    else:
        run_all(None, None, configs)
    if torch.distributed.is_initialized():  # what gloo leaves running can abort an interpreter that ends
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
