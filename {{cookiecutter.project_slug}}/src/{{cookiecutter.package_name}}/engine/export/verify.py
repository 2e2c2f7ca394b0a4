"""Check a bundle again: hashes, manifest, structure of each file, and its outputs for the golden samples.

python -m <package> verify
python -m <package> verify bundle=artifacts/<name>/<version>
python -m <package> verify bundle=artifacts/<name>/<version> trust=true
python -m <package> verify key=signing.pub

Only the formats that need torch import it.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ..config.command_line import Config
from ..config.validation import read_options
from ..console import shown
from ..errors import BadBundle
from ..inference.runtime import MANIFEST, check_files, find_bundle, first_samples, read_golden, read_manifest
from ..inference.signing import SIGNATURE, check_signature
from .contract import Contract
from .formats import FORMATS
from .gate import check_structure, compare, isolated_answers
from .triton import CONFIG, check_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The plain options of `configs/verify.yaml`."""

    bundle: str
    key: str | None
    trust: bool


def main(config: Config) -> None:
    options = read_options(config, Options)
    folder = find_bundle(options.bundle, Path(config["paths"]["artifact_dir"]))
    log.info("bundle      %s", shown(folder))
    if options.key is not None:
        check_signature(folder / MANIFEST, folder / SIGNATURE, options.key)
        log.info("signature   of the manifest was made with the private key of %s", options.key)
    elif (folder / SIGNATURE).exists():
        log.info("signature   not checked: add key=<public key>")
    verify(folder, trust=options.trust)
    log.info("verified    it is what was published")


def verify(folder: Path, *, trust: bool = False) -> dict[str, Any]:
    """Returns the manifest; raises `BadBundle` or `GateFailure`, which name the file that is wrong.

    With `trust` the formats that are code are run too.
    """
    manifest = read_checked(folder)
    log.info("            %d files have the sha256 that the manifest says", len(manifest["files"]))
    contract = Contract.of_manifest(manifest)
    verified = {entry["format"] for entry in manifest["parity"]}
    for name, format in FORMATS.items():
        if (format.file in manifest["files"]) != (name in verified):
            raise BadBundle(f"{format.file} in {folder} has no figures in manifest.json, or figures but no file.")
    for entry in manifest["parity"]:
        if FORMATS[entry["format"]].code and not trust:
            log.info("not run     %s, which is code: add trust=true", entry["file"])
            continue
        try:
            _check_answers(folder, entry, contract, manifest)
        except ModuleNotFoundError as error:
            log.info("not run     %s, which needs %s", entry["file"], error.name)
    if (folder.parent / CONFIG).is_file():
        check_config(folder.parent / CONFIG, contract.signature)
    return manifest


def read_checked(folder: Path) -> dict[str, Any]:
    """Returns the manifest after a check against its schema, and of every file against its hash."""
    manifest = read_manifest(folder)
    schema = json.loads((Path(__file__).with_name("manifest.schema.json")).read_text(encoding="utf-8"))
    error = best_match(Draft202012Validator(schema).iter_errors(manifest))
    if error is not None:
        raise BadBundle(f"manifest.json of {folder} does not fit its schema: {error.json_path}: {error.message}.")
    check_files(folder, manifest)
    return manifest


def _check_answers(folder: Path, entry: dict[str, Any], contract: Contract, manifest: dict[str, Any]) -> None:
    """Compares a file with the outputs that the trained model gave at its export."""
    path, format = folder / FORMATS[entry["format"]].file, FORMATS[entry["format"]]
    check_structure(format.name, path, contract)
    inputs, outputs = read_golden(folder)
    sizes = sorted({size for size in (1, 2, 7) if size <= manifest["max_batch_size"]} | {manifest["max_batch_size"]})
    answers = isolated_answers(format.name, path, [first_samples(inputs, size) for size in sizes], len(sizes))
    expected = [first_samples(outputs, size) for size in sizes]
    # A reduced format may be as far from the trained model as it was when it was published.
    tolerance = manifest["tolerance"] + (0.0 if format.exact else entry["largest_difference"])
    worst = compare(path, answers, expected, dict.fromkeys(outputs, tolerance), sizes)
    log.info("agrees      %s: largest difference %.1e at batches %s", path.name, worst, ", ".join(map(str, sizes)))
