"""The model card: the bundle's README, for the person who gets the files and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import PACKAGE
from ..inference.signature import TYPES
from ..markdown import render
from ..runs.run_record import commit_words
from ..training.plots import caption
from .contract import verified_batch_sizes
from .formats import FORMATS

# From numpy's names of types to those of libtorch, after `torch::k`.
CPP_TYPES = {
    "bool": "Bool",
    "uint8": "Byte",
    **{f"int{bits}": name for bits, name in ((8, "Char"), (16, "Short"), (32, "Int"), (64, "Long"))},
    **{f"float{bits}": name for bits, name in ((16, "Half"), (32, "Float"), (64, "Double"))},
}
BENCHMARK, BENCHMARK_PICTURE = "benchmark.json", "benchmark.png"


def card(folder: Path, manifest: Mapping[str, Any], benchmark: Mapping[str, Any] | None = None) -> str:
    """Renders the manifest, the pictures in `folder` and what `benchmark` measured; it can be written again later."""
    pictures = [path for path in sorted(folder.glob("*.png")) if path.name != BENCHMARK_PICTURE]
    return render(
        Path(__file__).with_name("card.md.jinja"),
        manifest=manifest,
        benchmark=benchmark,
        benchmark_picture=BENCHMARK_PICTURE,
        batch_sizes=verified_batch_sizes(manifest["max_batch_size"]),
        commit=commit_words(manifest["git"]),
        request_types={tensor["name"]: TYPES[tensor["dtype"]] for tensor in manifest["inputs"]},
        cpp_types=CPP_TYPES,
        labelled=[tensor for tensor in manifest["outputs"] if "labels" in tensor],
        network=json.dumps(manifest["config"]["model"].get("net"), ensure_ascii=False),
        package=PACKAGE,
        pictures=[(path.name, caption(path)) for path in pictures],
        reduced=[parity for parity in manifest["parity"] if not FORMATS[parity["format"]].exact],
    )
