"""The model card: a bundle's README, for the person who gets the files and nothing else."""

from ..checkpoints import Checkpoint
from .gate import Parity
from .signature import Signature

USE = {
    "onnx": """
```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
golden = np.load("golden.npz")
logits, probabilities = session.run(["logits", "probabilities"], {"input": golden["input"]})
assert np.allclose(logits, golden["logits"], atol=1e-4)
```
""",
    "torchscript": """
`model.pt` is loaded by `torch.jit.load("model.pt")`, in C++ by `torch::jit::load("model.pt")`. It is code: load only a
file that you trust.
""",
}


def card(name: str, version: int, created: str, checkpoint: Checkpoint, parities: list[Parity]) -> str:
    spec, signature = checkpoint.spec, Signature.of(checkpoint.spec)
    low, high = spec.input_range
    shape = " x ".join(["batch", *map(str, spec.input_shape)])
    rows = "\n".join(
        f"| `{parity.file}` | {parity.num_bytes / 1024:,.0f} KiB | {parity.largest_difference:.1e} "
        f"| {parity.num_agreeing} of {parity.num_samples} | {parity.latency_ms:.3f} ms |"
        for parity in parities
    )
    return f"""# {name}, version {version}

Classifies `{spec.name}` into {spec.num_classes} labels: {", ".join(spec.labels)}.
Accuracy on the {parities[0].num_samples} samples of the test split: **{parities[0].accuracy:.4f}**.
Exported on {created} from epoch {checkpoint.epoch + 1} of its training.

## Input and output

| tensor | type | shape | |
| --- | --- | --- | --- |
| `{signature.input.name}` | {signature.input.dtype} | {shape} | raw, {low:g} to {high:g}; normalised inside |
| `logits` | float32 | batch x {spec.num_classes} | one figure a label |
| `probabilities` | float32 | batch x {spec.num_classes} | their softmax |

## Files

Each was loaded in a process of its own and compared with the trained model, which takes
{parities[0].eager_latency_ms:.3f} ms for one sample in eager mode (one thread, on the exporting machine).

| file | size | largest difference | same label | one sample |
| --- | --- | --- | --- | --- |
{rows}

The difference is max |a - b| / max(1, |b|). `manifest.json` holds the figures, versions and the sha256 of every file;
`golden.npz` holds real samples and the answers that any copy of this model must give.

## Use
{"".join(USE[parity.format] for parity in parities)}"""
