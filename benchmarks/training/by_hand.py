"""The loop by hand on `PicturesDataModule` and the tiny network, for `benchmarks/peer.py`.

python by_hand.py <file for the seconds of each epoch> <number of epochs>
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from clock import tiny_network
from digit_classifier.engine.benchmark.loop import HandWrittenLoop
from digit_classifier.models.classifier import Classifier
from pictures import PicturesDataModule
from torch.optim import AdamW

if __name__ == "__main__":
    file, num_epochs = Path(sys.argv[1]), int(sys.argv[2])
    datamodule = PicturesDataModule(num_samples=55_000, num_val=5_000)
    datamodule.trainer = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, overfit_batches=0)
    model = Classifier(datamodule.spec, lambda spec: tiny_network(), partial(AdamW, lr=0.002, fused=True))
    loop = HandWrittenLoop(model, datamodule, torch.device("cpu"), datamodule.batch_size, seed=42)
    seconds = []
    for epoch in range(num_epochs):
        start = time.perf_counter()
        loop.epoch(epoch, train_batches=1_000_000, val_batches=1_000_000)
        seconds.append(time.perf_counter() - start)
    file.write_text(json.dumps(seconds), encoding="utf-8")
