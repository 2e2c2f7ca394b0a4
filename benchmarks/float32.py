"""How far single precision alone lets weights drift: full batches against two halves of each, in torch only.

In an environment of the generated project, from anywhere: python benchmarks/float32.py
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from digit_classifier.data.digits import DigitsDataModule
from digit_classifier.engine.distributed.dealing import seeded
from digit_classifier.engine.spec import DataSpec
from digit_classifier.models.classifier import Classifier
from digit_classifier.models.cnn import CNN
from digit_classifier.models.mlp import MLP
from tables import at_most, print_table
from torch import Tensor, nn
from torch.optim import SGD, AdamW

DATA = DigitsDataModule()
BOUND = 1e-5
CASES = {
    "cnn, AdamW": (lambda spec: CNN(spec, [32, 64, 64], 8, 0.0), partial(AdamW, lr=0.002, weight_decay=0.05)),
    "cnn, AdamW eps=1e-6": (
        lambda spec: CNN(spec, [32, 64, 64], 8, 0.0),
        partial(AdamW, lr=0.002, weight_decay=0.05, eps=1e-6),
    ),
    "cnn, SGD": (lambda spec: CNN(spec, [32, 64, 64], 8, 0.0), partial(SGD, lr=0.05, momentum=0.9)),
    "mlp, AdamW": (lambda spec: MLP(spec, [128, 128], 0.0), partial(AdamW, lr=0.002, weight_decay=0.05)),
}


def weights(net: Callable[[DataSpec], nn.Module], optimizer: partial, num_parts: int) -> dict[str, Tensor]:
    """Returns the weights after an epoch in the project's own order, each batch of 64 in `num_parts` parts."""
    torch.manual_seed(42)
    model = Classifier(DATA.spec, net, optimizer)
    steps = optimizer(model.parameters())
    samples = DATA.samples["train"]
    order = torch.randperm(len(samples), generator=seeded(42, 0)).tolist()
    for start in range(0, len(order) - 63, 64):
        batch = order[start : start + 64]
        steps.zero_grad()
        for part in range(num_parts):
            x, y = samples.__getitems__(batch[part::num_parts])
            (F.cross_entropy(model(x), y, label_smoothing=0.05) / num_parts).backward()
        steps.step()
    return model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for name, (net, optimizer) in CASES.items():
        full, halves = weights(net, optimizer, 1), weights(net, optimizer, 2)
        drift = max((halves[key] - full[key]).abs().max().item() for key in full)
        rows.append([name, at_most(drift, BOUND, f"{drift:.1e}")])
    print_table(["network and optimizer", f"largest difference of a weight; bound {BOUND:.0e}"], rows)
