"""What the torch-free loader costs over a bare `InferenceSession`, and how ONNX Runtime compares with eager.

python benchmarks/loader.py artifacts/<name>/<version>

In the environment of a generated project. One thread, batch 1; the two ways take turns, and the best of many rounds
counts: what else runs on the machine only ever adds.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
from tables import at_least, at_most, print_table

NUM_ROUNDS, NUM_CALLS = 60, 300


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(NUM_CALLS):
        call()
    return (time.perf_counter() - start) / NUM_CALLS * 1e6


def best_of_rounds(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(NUM_ROUNDS):
        for name, way in ways.items():
            best[name] = min(best[name], microseconds(way))
    return best


def main(folder: Path) -> None:
    package = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["name"]
    bundle = import_module(f"{package}.engine.inference.runtime").Bundle(folder, num_threads=1)
    session = bundle.session  # the same one: two sessions of one file differ by more than the loader costs
    inputs = np.load(folder / "golden.npz")["x"][:1]

    def bare() -> object:
        return session.run(["logits", "probabilities"], {"x": inputs})

    found = best_of_rounds({"bare": bare, "Bundle": lambda: bundle({"x": inputs})})
    added, bound = found["Bundle"] - found["bare"], max(5.0, 0.05 * found["bare"])
    rows = [
        ["bare `InferenceSession`", f"{found['bare']:.1f} us", "", ""],
        ["`Bundle`", f"{found['Bundle']:.1f} us", at_most(added, bound, f"{added:+.1f} us"), "5 us, or 5 %"],
    ]

    import torch  # only now: its threads would disturb the figures above

    torch.set_num_threads(1)
    network = import_module(f"{package}.engine.export.safetensors").rebuilt(folder / "model.safetensors")
    tensor = torch.from_numpy(inputs)
    with torch.inference_mode():
        found = best_of_rounds({"bare": bare, "eager": lambda: network(tensor)})
    times = found["eager"] / found["bare"]
    rows.append(
        ["eager mode", f"{found['eager']:.1f} us", at_least(times, 3, f"{times:.2f} times"), "at least 3 times"]
    )
    print_table(["a call with one sample, one thread", "fastest", "beside the bare session", "bound"], rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
