"""What dealing a DataLoader to one process adds to its own processor time: interleaved pairs, and their median.

In an environment of the generated project: python benchmarks/dealing.py
"""

import statistics
import time
from typing import Any

import torch
from digit_classifier.engine import SamplesInMemory
from digit_classifier.engine.data.samples import as_fetched
from digit_classifier.engine.distributed.dealing import Share, deal
from tables import at_most, print_table, spread
from torch.utils.data import DataLoader, Dataset, TensorDataset

BATCH_SIZE, NUM_BATCHES, NUM_DRAWN, NUM_PAIRS = 64, 200, 40, 15
NUM_SAMPLES = BATCH_SIZE * NUM_DRAWN  # of a data set that draws random numbers


class Numbered(Dataset[Any]):
    """A data set that might draw random numbers, and does not."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Any:
        return index


class Drawing(Numbered):
    """Samples with random noise."""

    def __getitem__(self, index: int) -> Any:
        return torch.randn(16), index


def microseconds(loader: Any, count: int) -> float:
    start = time.process_time()
    for _ in loader:
        pass
    return (time.process_time() - start) / count * 1e6


def main() -> None:
    torch.set_num_threads(1)
    num_samples = BATCH_SIZE * NUM_BATCHES
    inputs, labels = torch.randn(num_samples, 16), torch.randint(0, 10, (num_samples,))
    in_memory = DataLoader(
        SamplesInMemory(inputs, labels),
        BATCH_SIZE,
        shuffle=True,
        collate_fn=as_fetched,  # type: ignore[arg-type]
    )
    tensors = TensorDataset(inputs, labels)
    cases: list[tuple[str, Any, int, float]] = [
        ("a batch of `SamplesInMemory`", in_memory, NUM_BATCHES, 50),
        ("a batch of a `TensorDataset`", DataLoader(tensors, BATCH_SIZE, shuffle=True), NUM_BATCHES, 50),
        ("a batch of another data set", DataLoader(Numbered(), BATCH_SIZE, shuffle=True), NUM_DRAWN, 50),
        ("a sample that draws random numbers", DataLoader(Drawing(), BATCH_SIZE, shuffle=True), NUM_SAMPLES, 15),
    ]
    rows = []
    for name, plain, count, bound in cases:
        dealt = deal(plain, Share(), "train_dataloader")
        pairs = [(microseconds(plain, count), microseconds(dealt, count)) for _ in range(NUM_PAIRS)][1:]
        added = [after - before for before, after in pairs]
        before = statistics.median(before for before, _ in pairs)
        text = spread(added, 1)
        rows.append([name, f"{before:.1f}", at_most(statistics.median(added), bound, text), bound])
    print_table(["microseconds of one core", "without dealing", "dealing adds", "bound"], rows)


if __name__ == "__main__":
    main()
