"""The model card: the bundle's README, for the person who gets the files and nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..runs.provenance import commit_words
from ..training.plots import PICTURES
from .formats import FORMATS
from .signature import verified_batch_sizes
from .snippets import use

BENCHMARK, BENCHMARK_PICTURE = "benchmark.json", "benchmark.png"
MOST_NAMED = 20  # categories of a column
METRICS = {
    "test/acc": "accuracy",
    "test/f1": "macro F1",
    "test/rmse": "root mean squared error",
    "test/mae": "mean absolute error",
    "test/r2": "R2, the share of the variance that is explained",
}

MEANINGS = {
    "classification": ("one figure a label", "their softmax"),
    "multilabel": ("one figure a label", "their sigmoid: each label for itself"),
    "regression": ("in the units of the target",),
}

PURPOSE = {
    "onnx": "ONNX Runtime, Triton, and whatever reads ONNX: the first choice",
    "torchscript": "libtorch in C++ (legacy: torch supports it up to Python 3.13)",
    "torch_export": "torch's own graph, for AOTInductor and ExecuTorch",
    "onnx_int8": "a quarter of the size; not always faster",
    "onnx_fp16": "half the size; made for GPUs",
    "safetensors": "the weights alone, to train on",
}


def card(manifest: Mapping[str, Any], benchmark: Mapping[str, Any] | None = None) -> str:
    """Made of the manifest and of what `benchmark` measured, so that it can be written again."""
    parts = [_head(manifest), _input_and_output(manifest), _files(manifest)]
    if benchmark is not None:
        parts.append(_speed(benchmark))
    return "\n".join([*parts, use(manifest), _origin(manifest)])


def _head(manifest: Mapping[str, Any]) -> str:
    data, metrics, counts = manifest["data"], manifest["metrics"], manifest["data"]["num_samples"]
    description = data["description"] or f"`{data['name']}`."
    picture, shows = PICTURES[manifest["task"]]
    figures = "\n".join(f"| {METRICS.get(name, name)} | {value:.4f} |" for name, value in metrics.items())
    return f"""# {manifest["name"]}, version {manifest["version"]}

{_purpose(manifest)}

**Data.** {description} Trained on {counts["train"]:,} samples, validated on {counts["val"]:,} others, and tested on
{counts["test"]:,} that were kept from both:

| on the test split | |
| --- | --- |
{figures}

![{shows}]({picture})
"""


def _purpose(manifest: Mapping[str, Any]) -> str:
    name, labels = manifest["data"]["name"], manifest["labels"]
    if manifest["task"] == "regression":
        return f"Predicts {manifest['target']['name']}, a number, from `{name}`."
    several = ", any number of them at once" if manifest["task"] == "multilabel" else ""
    return f"Classifies `{name}` into {len(labels)} labels{several}: {', '.join(labels)}."


def _input_and_output(manifest: Mapping[str, Any]) -> str:
    (tensor,) = manifest["inputs"]
    low, high = tensor["range"]
    what = f"raw, {low:g} to {high:g}; normalised inside the graph"
    if "columns" in tensor:
        what = "a value for each of the columns below; filled and normalised inside the graph"
    *sizes, largest = verified_batch_sizes(manifest["max_batch_size"])
    rows = "\n".join(
        f"| `{output['name']}` | {output['dtype']} | {_shape(output)} | {meaning} |"
        for output, meaning in zip(manifest["outputs"], MEANINGS[manifest["task"]], strict=True)
    )
    return f"""## Input and output

| tensor | type | shape | |
| --- | --- | --- | --- |
| `{tensor["name"]}` | {tensor["dtype"]} | {_shape(tensor)} | {what} |
{rows}

Takes batches of 1 to {largest} samples; {", ".join(map(str, sizes))} and {largest} were verified.
{_columns(tensor.get("columns", ()))}"""


def _columns(columns: Sequence[Mapping[str, Any]]) -> str:
    """Nothing for a model that takes no table."""
    if not columns:
        return ""
    rows = "\n".join(
        f"| {number} | {_escaped(column['name'])} | {_values(column)} | {'yes' if column['gaps'] else 'no'} |"
        for number, column in enumerate(columns)
    )
    coded = (
        """ A category is sent as its code, counted from 1 in the order above; 0 stands for
one that is missing, or that the training did not know."""
        if any(c["categories"] for c in columns)
        else ""
    )
    return f"""
| place | column | values | missing in training |
| --- | --- | --- | --- |
{rows}

A missing number is NaN.{coded}
"""


def _values(column: Mapping[str, Any]) -> str:
    categories = column["categories"]
    if categories is None:
        return "a number"
    named = ", ".join(f"`{_escaped(category)}`" for category in categories[:MOST_NAMED])
    more = f" and {len(categories) - MOST_NAMED} more, in `manifest.json`" if len(categories) > MOST_NAMED else ""
    return f"one of {named}{more}"


def _escaped(text: str) -> str:
    """For a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def _shape(tensor: Mapping[str, Any]) -> str:
    return " x ".join(["batch", *map(str, tensor["shape"][1:])])


def _files(manifest: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| `{parity['file']}` | {parity['num_bytes'] / 1024:,.0f} KiB | {parity['largest_difference']:.1e} "
        f"| {parity['num_agreeing']} of {parity['num_samples']} | {parity['latency_ms']:.3f} ms "
        f"| {PURPOSE[parity['format']]} |"
        for parity in manifest["parity"]
    )
    reduced = [parity for parity in manifest["parity"] if not FORMATS[parity["format"]].exact]
    score = "r2" if manifest["task"] == "regression" else "accuracy"
    scores = ", ".join(f"`{parity['file']}` {parity[score]:.4f}" for parity in reduced)
    return f"""## Files

Each was loaded in a process of its own and compared with the trained model, which takes
{manifest["eager_latency_ms"]:.3f} ms for one sample in eager mode (one thread, on the exporting machine).

| file | size | largest difference | alike | one sample | made for |
| --- | --- | --- | --- | --- | --- |
{rows}

The difference is max |a - b| / max(1, |b|).{f" Of the reduced formats, the {score}: {scores}." if reduced else ""}
`manifest.json` holds the figures, versions and the sha256 of every file; `golden.npz` holds real samples and the
answers that any copy of this model must give.
"""


def _speed(benchmark: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {row['format']} | {row['batch_size']} | {row['p50_ms']:.3f} ms | {row['p95_ms']:.3f} ms "
        f"| {row['samples_per_second']:,.0f} | {row['speedup']:.2f} "
        f"({row['speedup_range'][0]:.2f} to {row['speedup_range'][1]:.2f}) |"
        for row in benchmark["rows"]
    )
    machine, threads = benchmark["machine"], benchmark["num_threads"]
    return f"""## Speed

On {machine["processor"]} ({machine["num_cores"]} cores, {machine["system"]}), {threads} thread{"s" * (threads > 1)},
beside the trained model in eager mode:

| format | batch | median (p50) | p95 | samples a second | times as fast (range of {benchmark["num_rounds"]} rounds) |
| --- | --- | --- | --- | --- | --- |
{rows}

![The same as a picture: the median of a call in each format]({BENCHMARK_PICTURE})
"""


def _origin(manifest: Mapping[str, Any]) -> str:
    checkpoint, commit = manifest["checkpoint"], commit_words(manifest["git"])
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return f"""## Where it comes from

Exported on {manifest["created"]} from epoch {checkpoint["epoch"] + 1} of its training (`{checkpoint["file"]}`, sha256
`{checkpoint["sha256"][:16]}...`); {commit}; {versions}. The network was configured as
`{json.dumps(manifest["config"]["model"]["net"], ensure_ascii=False)}`.
"""
