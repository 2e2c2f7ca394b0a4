"""`predict` on real files, from a checkpoint and from a bundle."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bundles import write_segmenter
from conftest import run_command
{% if cookiecutter.data_kind == "images" %}
from PIL import Image
{% endif %}

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.inference.prediction_files import prediction_writer
from {{ cookiecutter.package_name }}.engine.inference.runtime import (
    {{ "Bundle,
    " if cookiecutter.data_kind == "tables" }}read_golden,
    read_manifest,
)
from {{ cookiecutter.package_name }}.engine.inference.signature import Arrays, Signature, TensorSignature
from {{ cookiecutter.package_name }}.engine.library import load
from {{ cookiecutter.package_name }}.engine.workflows.prediction import Model, predict

{% if cookiecutter.data_kind == "images" %}
FIRST, SECOND = "00.png", "deep/01.bmp"
NO_SAMPLE = "it is no picture, or damaged"
{% else %}
FIRST, SECOND = "00.csv", "deep/01.tsv"
NO_SAMPLE = "it has no column 'mean radius', but no sample"
{% endif %}
SUFFIX = Path(FIRST).suffix
NAMES = (FIRST, SECOND, "deep/batch.npy", "one.npy")
ROWS = [(FIRST, 0, 0), (SECOND, 0, 1), *(("deep/batch.npy", k, k) for k in range(8)), ("one.npy", 0, 2)]


def save(sample: npt.NDArray[Any], path: Path, bundle: Path) -> None:
    """Saves one sample as a file."""
{% if cookiecutter.data_kind == "images" %}
    Image.fromarray(sample[0]).save(path)
{% else %}
    names = [column.name for column in Bundle(bundle).signature.inputs[0].columns]
    separator = "\t" if path.suffix == ".tsv" else ","
    path.write_text("\n".join(separator.join(map(str, line)) for line in (names, sample.tolist())), encoding="utf-8")
{% endif %}


@pytest.fixture
def samples(bundle: Path, tmp_path: Path) -> Path:
    """A folder of the golden samples, as files and arrays, with one that cannot be read among them."""
    inputs = read_golden(bundle)[0]["x"]
    folder = tmp_path / "samples"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for index, name in enumerate((FIRST, SECOND, f".hidden/02{SUFFIX}")):
        save(inputs[index], folder / name, bundle)
    np.save(folder / "one.npy", inputs[2])
    np.save(folder / "deep/batch.npy", inputs)
    (folder / "notes.txt").write_text("no sample", encoding="utf-8")
    return folder


def spoil(folder: Path) -> list[str]:
    """Adds files that cannot be used; returns their names."""
    (folder / f"empty{SUFFIX}").touch()
    (folder / f"cut{SUFFIX}").write_bytes((folder / FIRST).read_bytes()[:50])
    np.save(folder / "wide.npy", np.zeros((2, 1, 9, 9), np.uint8))
    np.save(folder / "objects.npy", np.array([{}], dtype=object))
    (folder / f"gone{SUFFIX}").symlink_to("nowhere")
    os.mkfifo(folder / f"pipe{SUFFIX}")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (999999999999, 1, 8, 8), }"
    (folder / "huge.npy").write_bytes(header.ljust(127) + b"\n")
    (folder / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    (folder / "junk.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1,")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 1, 8, 8), }"
    (folder / "less.npy").write_bytes(header.ljust(127) + b"\n")
    arrays = ["zip.npy", "junk.npy", "less.npy", "wide.npy", "objects.npy", "huge.npy"]
    return [*(f"{name}{SUFFIX}" for name in ("empty", "cut", "gone", "pipe")), *arrays]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_model_is_a_library_of_a_program(best_checkpoint: Path, bundle: Path, samples: Path) -> None:
    inputs, outputs = read_golden(bundle)
    labels = [read_manifest(bundle)["outputs"][1]["labels"][place] for place in outputs["probabilities"].argmax(axis=1)]
    for path in (best_checkpoint, str(bundle)):
        model = load(path, batch_size=3)
        assert [tensor.name for tensor in model.signature.inputs] == ["x"]
        for given in (inputs["x"], inputs, samples / "deep/batch.npy"):
            found = model.predict(given)
            assert [answer["label"] for answer in found] == labels
            best = [max(answer["probabilities"].values()) for answer in found]
            assert best == pytest.approx(outputs["probabilities"].max(axis=1).tolist(), abs=1e-5)
        assert len(model.predict(samples)) == len(ROWS)
        assert len(model.predict([samples / FIRST, samples / SECOND])) == 2
        for wrong, error, sentence in (
            (inputs["x"].astype(np.float64), ValueError, "'x' is float64, but this model takes"),
            (inputs["x"][..., :1], ValueError, "'x' has the shape"),
            ({"y": inputs["x"]}, ValueError, "the input '[xy]' is"),
            ({"x": inputs["x"], "y": inputs["x"][:1]}, ValueError, "the arrays have 8 and 1 samples"),
            (samples / "notes.txt", UserError, "it cannot be used"),
            (samples / "nowhere", UserError, "does not exist"),
        ):
            with pytest.raises(error, match=sentence):
                model.predict(wrong)
    for nothing in ("nowhere.ckpt", "nowhere"):
        with pytest.raises(UserError, match=r"nowhere.* does not exist"):
            load(nothing)


def test_checkpoint_predicts_a_folder_and_names_what_is_broken(
    best_checkpoint: Path, bundle: Path, samples: Path
) -> None:
    broken = spoil(samples)
    done = run_command("predict", f"ckpt_path={best_checkpoint}", "input=samples", cwd=samples.parent)
    (path,) = samples.parent.glob("logs/predict/runs/*/predictions.csv")
    probabilities = read_golden(bundle)[1]["probabilities"]
    rows = rows_of(path)
    assert [(row["file"], int(row["index"])) for row in rows] == [(f"samples/{name}", k) for name, k, _ in ROWS]
    for row, (_, _, golden) in zip(rows, ROWS, strict=True):
        assert row["label"] == read_manifest(bundle)["outputs"][1]["labels"][probabilities[golden].argmax()]
        assert float(row["probability"]) == pytest.approx(probabilities[golden].max(), abs=1e-5)
    for name in broken:
        assert done.stdout.count(f"left out    samples/{name}: ") == 1
    assert f"predicted   {len(ROWS)} samples of {len(NAMES) + len(broken)} files, {len(broken)} left out" in done.stdout
    assert f"written     {path.relative_to(samples.parent)}" in done.stdout


def test_bundle_gives_the_same_without_torch(bundle: Path, samples: Path) -> None:
    code = (
        f"import sys; from {package.__name__}.predict import main; main()\n"
        "assert not sys.modules.keys() & {'torch', 'lightning'}, 'torch was imported'\n"
    )
    options = [f"bundle={bundle}", "input=[samples/deep,samples/*.*]", "output=new/a.jsonl", "probabilities=true"]
    command = [sys.executable, "-c", code, *options, "batch_size=3"]
    done = subprocess.run(command, cwd=samples.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (samples.parent / "new/a.jsonl").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    order = [row for row in ROWS if row[0].startswith("deep/")] + [row for row in ROWS if "/" not in row[0]]
    assert [(row["file"], row["index"]) for row in found] == [(f"samples/{name}", k) for name, k, _ in order]
    probabilities = read_golden(bundle)[1]["probabilities"]
    for row, (_, _, golden) in zip(found, order, strict=True):
        assert list(row["probabilities"]) == read_manifest(bundle)["outputs"][1]["labels"]
        assert list(row["probabilities"].values()) == pytest.approx(probabilities[golden].tolist(), abs=1e-5)
        assert row["probability"] == row["probabilities"][row["label"]] == max(row["probabilities"].values())
    assert "left out    samples/notes.txt: the model takes files that end in" in done.stdout


def test_nothing_to_predict_is_a_failure_that_leaves_an_earlier_file(bundle: Path, samples: Path) -> None:
    (samples / FIRST).write_text("no sample", encoding="utf-8")
    output = samples.parent / "a.csv"
    output.write_text("earlier", encoding="utf-8")
    options = (f"bundle={bundle}", f"input=samples/{FIRST}", "output=a.csv")
    failed = run_command("predict", *options, cwd=samples.parent, check=False)
    assert failed.returncode == 1
    reason = f"samples/{FIRST}: {NO_SAMPLE}"
    assert failed.stderr == f"error: input=samples/{FIRST} holds nothing that can be predicted: {reason}.\n"
    assert output.read_text(encoding="utf-8") == "earlier"
    assert sorted(path.name for path in samples.parent.iterdir() if path.name != "logs") == ["a.csv", "samples"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nowhere.npy", "input=nowhere.npy does not exist: give a file, a folder"),
        (".", "input=. holds no file to read"),
    ],
)
def test_input_that_is_not_there_is_refused(bundle: Path, tmp_path: Path, given: str, sentence: str) -> None:
    refused = run_command("predict", f"bundle={bundle}", f"input={given}", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {sentence}")


def test_changed_bundle_is_refused(bundle: Path, samples: Path) -> None:
    copy = Path(shutil.copytree(bundle, samples.parent / "copy"))
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    refused = run_command("predict", f"bundle={copy}", "input=samples", cwd=samples.parent, check=False)
    assert refused.returncode == 1
    assert "error: model.onnx in " in refused.stderr
    assert not list(samples.parent.rglob("predictions.csv"))


def test_full_disk_leaves_no_half_of_a_file(bundle: Path, samples: Path) -> None:
    """No file of more than 20,000 bytes can be written, as if the disk were full then."""
    np.save(samples / "many.npy", np.repeat(read_golden(bundle)[0]["x"], 200, axis=0))

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", package.__name__, "predict", f"bundle={bundle}", "input=samples", "output=a.csv"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run(
        command, cwd=samples.parent, env=environment, preexec_fn=limited, capture_output=True, text=True, check=False
    )
    assert full.returncode == 2, full.stderr
    assert full.stderr == "error: output=a.csv cannot be written: File too large.\n"
    assert [path.name for path in samples.parent.iterdir() if path.name.startswith((".", "a"))] == []


def test_interruption_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    """The interruption comes in the middle, as from the keyboard."""
    np.save(tmp_path / "a.npy", np.zeros((9, 2), np.float32))
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"probabilities": np.full((len(inputs["x"]), 2), 0.5, np.float32)}

    taken = TensorSignature("x", "float32", ("batch", 2), (0.0, 1.0))
    given = TensorSignature("probabilities", "float32", ("batch", 2), labels=("no", "yes"))
    model = Model(Signature((taken,), (given,), 2), 2, run)
    (tmp_path / "a.csv").write_text("earlier", encoding="utf-8")
    writer = prediction_writer(tmp_path / "a.csv", model.signature, False)
    with pytest.raises(KeyboardInterrupt), writer as write:
        predict(model, [tmp_path / "a.npy"], write)
    assert calls == [2, 2, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.csv"}
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "earlier"


def test_arrays_by_name_are_predicted_and_all_outputs_written(tmp_path: Path) -> None:
    bundle = write_segmenter(tmp_path / "artifacts" / package.__name__ / "1", with_row=True)
    golden = dict(np.load(bundle / "golden.npz"))
    np.savez(tmp_path / "samples.npz", picture=golden["picture"], row=golden["row"])
    np.savez(tmp_path / "one.npz", picture=golden["picture"][0], row=golden["row"][0])
    np.save(tmp_path / "alone.npy", golden["picture"])
    np.savez(tmp_path / "other.npz", picture=golden["picture"])
    options = (f"bundle={bundle}", "input=[samples.npz,one.npz,alone.npy,other.npz]", "output=found.npz")
    done = run_command("predict", *options, cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["logits"], golden["logits"][[0, 1, 0]], atol=1e-6)
    assert "left out    alone.npy: it holds one array: save picture, row by name, with numpy.savez" in done.stdout
    assert "left out    other.npz: the input 'row' is missing: this model takes picture, row" in done.stdout
    assert "predicted   3 samples of 4 files, 2 left out" in done.stdout
{% if cookiecutter.data_kind == "images" %}


def test_masks_are_written_as_pictures_beside_the_table(tmp_path: Path) -> None:
    bundle = write_segmenter(tmp_path / "artifacts" / package.__name__ / "1", with_row=False)
    Image.fromarray(np.tile(np.linspace(0, 255, 8).astype(np.uint8), (8, 1))).save(tmp_path / "a.png")
    run_command("predict", f"bundle={bundle}", "input=a.png", "output=found.csv", cwd=tmp_path)
    (row,) = rows_of(tmp_path / "found.csv")
    shares = {"share_paper": "0.375", "share_ink": "0.375", "share_smudge": "0.25"}
    assert row == {"file": "a.png", **shares}
    mask = np.asarray(Image.open(tmp_path / "found_a_0_logits.png"))
    assert mask[0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]
{% endif %}
