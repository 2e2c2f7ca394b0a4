"""What an export takes and gives: seconds, differences to the trained model, sizes, and the speed of each format.

In an environment of a generated project, from anywhere:

python benchmarks/exports.py                 the commands and their files
python benchmarks/exports.py --formats       the speed of each format beside eager mode

Everything happens in a folder of its own, in which the default network is trained for two epochs first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tables import at_most, print_table, say

ALL = "formats=[onnx,torchscript,torch_export,onnx_int8,onnx_fp16,safetensors]"
SHORT = ["trainer=cpu", "trainer.max_epochs=2", "rehearse_export=false", "test=false"]
LARGE = ["model=mlp", "model.net.widths=[1024,1024]"]
EXACT = ("onnx", "torchscript", "torch_export", "safetensors")
TOLERANCE, MOST_OF_INT8 = 1e-5, 0.35


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", action="store_true", help="measure the speed of the formats")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        (formats if parser.parse_args().formats else commands)()


def commands() -> None:
    run("train", *SHORT)
    default, every = run("export"), run("export", ALL)
    verified = run("verify", "bundle=artifacts/digit_classifier/1")
    bundle, picture = Path("artifacts/digit_classifier/2"), Path("picture.png")
    write_picture(picture)
    predicted = run("predict", f"input={picture}", "bundle=latest")
    run("train", *SHORT, *LARGE)
    run("export", "formats=[onnx,onnx_int8]")
    large = manifest(Path("artifacts/digit_classifier/3"))["files"]
    int8, whole = (large[name]["bytes"] for name in ("model.int8.onnx", "model.onnx"))
    rows = [
        ["`export` of the three default formats, gate included", at_most(default, 30, f"{default:.1f} s"), "30 s"],
        ["`export` of all six formats", f"{every:.1f} s", ""],
        ["`verify` of the three", f"{verified:.1f} s", ""],
        ["`predict` of one picture by a bundle", f"{predicted:.2f} s", ""],
    ]
    for entry in manifest(bundle)["parity"]:
        difference, is_exact = entry["largest_difference"], entry["format"] in EXACT
        text = f"{difference:.1e}; {entry['num_agreeing']} of {entry['num_samples']} samples with the same label"
        bound = f"{TOLERANCE:.0e}" if is_exact else "what the metric may lose"
        title = f"`{entry['format']}`, largest difference to the trained model"
        rows.append([title, at_most(difference, TOLERANCE if is_exact else 1.0, text), bound])
    size = f"{int8 / whole:.2f} ({int8 / 1024:,.0f} of {whole / 1024:,.0f} KiB)"
    title = "size of `onnx_int8` beside `onnx`, 1.1 million weights"
    rows.append([title, at_most(int8 / whole, MOST_OF_INT8, size), MOST_OF_INT8])
    print_table(["what", "measured", "bound"], rows)


def formats() -> None:
    rows = []
    for title, options in (("default CNN", []), ("1.1 million weights", LARGE)):
        run("train", *SHORT, *options)
        run("export", ALL)
        run("benchmark", "bundle=latest", "trust=true")
        (file,) = sorted(Path("artifacts/digit_classifier").glob("*/benchmark.json"))[-1:]
        measured = json.loads(file.read_text(encoding="utf-8"))["rows"]
        by_name: dict[str, list[Any]] = {}
        for each in measured:
            by_name.setdefault(each["format"], []).append(each)
        for name, of_sizes in by_name.items():
            cells = []
            for each in of_sizes:
                low, high = each["speedup_range"]
                times = "" if name == "eager" else f"{each['speedup']:.2f} ({low:.2f} to {high:.2f})"
                cells += [f"{each['p50_ms']:.3f}, {each['p95_ms']:.3f} ms", times]
            rows.append([title, name if name == "eager" else f"`{name}`", *cells])
    one, many = "one sample: p50, p95", "a batch of 64: p50, p95"
    print_table(["network", "format", one, "times as fast as eager", many, "times as fast as eager"], rows)


def run(*words: str) -> float:
    """The seconds that a command takes, start to end."""
    say(f"{words[0]} {' '.join(words[1:])}")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "digit_classifier", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return found


def write_picture(file: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    Image.fromarray((load_digits().images[0] * 255 / 16).astype("uint8")).save(file)


if __name__ == "__main__":
    main()
