"""The model card: the bundle's README, for the person who gets the files and nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import PACKAGE
from ..inference.input_schema import TYPES
from ..markdown import render
from ..runs.run_record import commit_words
from ..training.plots import caption
from .formats import FORMATS
from .signature import verified_batch_sizes

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
        datatype=TYPES[manifest["inputs"][0]["dtype"]],
        network=json.dumps(manifest["config"]["model"].get("net"), ensure_ascii=False),
        package=PACKAGE,
        pictures=[(path.name, caption(path)) for path in pictures],
        reduced=[parity for parity in manifest["parity"] if not FORMATS[parity["format"]].exact],
    )
