"""What holds of every export, whatever was trained and how."""

import errno
import functools
import getpass
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import run_command, started, trained, wait_for
from e2e.test_commands import SPOILED_EXPORT
from sources import source_of
from torch import nn

import digit_classifier as package
from digit_classifier.data.digits import DigitsDataModule
from digit_classifier.engine.errors import UserError
from digit_classifier.engine.export import bundle as publishing
from digit_classifier.engine.export.contract import Contract, GateFailure
from digit_classifier.engine.export.formats import FORMATS, exporter
from digit_classifier.engine.export.gate import Limits, Parity, isolated_answers
from digit_classifier.engine.export.metrics import MetricGate
from digit_classifier.engine.export.network import Call, deployed, description_of
from digit_classifier.engine.export.options import Options
from digit_classifier.engine.export.pipeline import Trained
from digit_classifier.engine.export.verify import verify
from digit_classifier.engine.inference.runtime import read_manifest
from digit_classifier.engine.training import checkpoints
from digit_classifier.engine.workflows.exporting import export
from digit_classifier.models.classifier import Classifier
from digit_classifier.models.cnn import CNN
from digit_classifier.models.mlp import MLP

OPTIONS = Options("made", 8, 1e-5, False, 0.005, None, None, None, "real", None)
ALL = f"formats=[{','.join(FORMATS)}]"
EXACT_FORMATS = [name for name, format in FORMATS.items() if format.exact]
ONE_EPOCH = ("trainer=cpu", "trainer.max_epochs=1")


def exported(checkpoint: Path, folder: Path, *options: str) -> Path:
    run_command("export", f"ckpt_path={checkpoint}", *options, cwd=folder)
    return max((folder / "artifacts/digit_classifier").glob("*/manifest.json")).parent


@pytest.fixture(scope="module")
def all_formats(best_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(best_checkpoint, tmp_path_factory.mktemp("all"), ALL, "export.max_batch_size=256")


@pytest.mark.parametrize("model", ["cnn", pytest.param("mlp", marks=pytest.mark.slow)])
def test_formats_in_float32_agree_with_eager_at_all_batches(model: str, all_formats: Path, tmp_path: Path) -> None:
    bundle = all_formats
    if model == "mlp":
        run_dir = trained(tmp_path, *ONE_EPOCH, "model=mlp")
        names = ",".join(EXACT_FORMATS)
        bundle = exported(
            run_dir / "checkpoints/best.ckpt", tmp_path, f"formats=[{names}]", "export.max_batch_size=256"
        )
    parities = {entry["format"]: entry for entry in read_manifest(bundle)["parity"]}
    for name in EXACT_FORMATS:
        assert parities[name]["largest_difference"] <= 1e-5
        assert parities[name]["num_agreeing"] == 360
    verify(bundle, trust=True)


@pytest.mark.parametrize(
    "options",
    [
        ("trainer=cpu", "compile=true"),
        ("trainer=cpu", "strategy=ddp", "trainer.devices=2"),
        ("trainer=cpu", "trainer.precision=bf16-mixed"),
        ("trainer=cpu", "trainer.precision=bf16-true"),
        ("trainer=cpu", "trainer.precision=64-true"),
    ],
    ids=lambda options: options[-1],
)
@pytest.mark.slow
def test_gate_holds_whatever_the_run_was(options: tuple[str, ...], tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *options, "trainer.max_epochs=1")
    bundle = exported(run_dir / "checkpoints/best.ckpt", tmp_path)
    assert all(entry["largest_difference"] <= 1e-5 for entry in read_manifest(bundle)["parity"])


def contents_of(path: Path) -> dict[str, bytes]:
    """A file, and what lies in it where it is an archive."""
    found = {path.name: path.read_bytes()}
    inside = list(found.items())
    while inside:
        name, contents = inside.pop()
        if zipfile.is_zipfile(io.BytesIO(contents)):
            with zipfile.ZipFile(io.BytesIO(contents)) as archive:
                new = {f"{name}/{member}": archive.read(member) for member in archive.namelist()}
            found |= new
            inside += new.items()
    return found


def leaks(name: str, contents: bytes) -> list[str]:
    """What tells of this machine or of the person at it; a name of four letters is found in any picture."""
    told = [str(Path.home()), str(Path(package.__file__).parents[1]), sys.prefix, sys.base_prefix]
    told += [name for name in (getpass.getuser(), os.uname().nodename) if len(name) > 4]
    told += [
        "Traceback",
        "stack_trace",
        'File "',
        "site-packages",
        *(f"/{folder}/" for folder in ("tmp", "home", "root")),
    ]
    return [f"{word} in {name}" for word in told if word.encode() in contents]


def test_synthetic_golden_samples_are_none_of_the_test_split(best_checkpoint: Path, tmp_path: Path) -> None:
    options = (f"ckpt_path={best_checkpoint}", "formats=[onnx]", "export.golden=synthetic")
    printed = run_command("export", *options, cwd=tmp_path).stdout
    assert "8 synthetic samples in golden.npz; export.golden=real for real ones" in printed
    (manifest,) = (tmp_path / "artifacts").glob("*/*/manifest.json")
    assert read_manifest(manifest.parent)["golden"] == "synthetic"
    run_command("verify", f"bundle={manifest.parent}", cwd=tmp_path)
    made = np.load(manifest.parent / "golden.npz")["x"]
    real = DigitsDataModule().samples["test"].inputs.numpy()
    assert (made.dtype, made.shape) == (real.dtype, (8, *real.shape[1:]))
    assert not any((sample == real).all(axis=(1, 2, 3)).any() for sample in made)
    assert abs(made.mean() / real.mean() - 1) < 0.5


def test_no_path_user_or_stack_trace_is_published(all_formats: Path) -> None:
    files = [*all_formats.iterdir(), all_formats.parent / "config.pbtxt"]
    parts = {name: contents for path in files for name, contents in contents_of(path).items()}
    assert len([name for name in parts if name.startswith(("model.pt/", "model.pt2/", "golden.npz/"))]) > 30
    assert [leak for name, contents in parts.items() for leak in leaks(name, contents)] == []


def test_that_leaks_are_found_where_torch_leaves_them(best_checkpoint: Path, tmp_path: Path) -> None:
    """The same search finds them in files as torch writes them, zipped members included."""
    spec = DigitsDataModule().spec
    classifier = Classifier(spec, net=lambda spec: MLP(spec, [8], 0.0), optimizer=torch.optim.Adam)
    network = deployed(classifier, Call(("x",)))
    example = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    torch.export.save(torch.export.export(network, (example,)), tmp_path / "model.pt2")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(network, example), tmp_path / "model.pt")
    for path in tmp_path.iterdir():
        assert [leak for name, contents in contents_of(path).items() for leak in leaks(name, contents)]


@pytest.mark.slow
def test_large_network_in_8_bits_is_a_third_of_its_size(tmp_path: Path) -> None:
    run_dir = trained(tmp_path, *ONE_EPOCH, "model=mlp", "model.net.widths=[1024,1024]")
    bundle = exported(run_dir / "checkpoints/best.ckpt", tmp_path, "formats=[onnx,onnx_int8,onnx_fp16]")
    sizes = {entry["format"]: entry["num_bytes"] for entry in read_manifest(bundle)["parity"]}
    assert sizes["onnx"] > 4_000_000
    assert sizes["onnx_int8"] <= 0.35 * sizes["onnx"]
    assert sizes["onnx_fp16"] <= 0.55 * sizes["onnx"]


def test_manifest_tells_the_commit_and_whether_all_was_committed(best_checkpoint: Path, tmp_path: Path) -> None:
    """In a copy of the project that is a repository of its own."""
    source = Path(package.__file__).parents[1]
    project, place = tmp_path / "project", tmp_path / "place"
    shutil.copytree(source, project / "src", ignore=shutil.ignore_patterns("__pycache__"))
    place.mkdir()
    git = ["git", "-C", str(project), "-c", "user.name=A", "-c", "user.email=a@b.c"]

    def state() -> dict[str, object]:
        environment = os.environ | {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        code = (
            "from digit_classifier.engine.runs.run_record import git_state; import json; print(json.dumps(git_state()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=True
        )
        found: dict[str, object] = json.loads(done.stdout)
        return found

    assert state() is None
    subprocess.run([*git, "init", "--quiet"], check=True)
    assert state() is None
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "all"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert state() == {"commit": commit, "clean": True}
    (project / "notes.txt").write_text("new", encoding="utf-8")
    assert state() == {"commit": commit, "clean": False}


@pytest.mark.slow
def test_two_exports_at_once_get_two_versions(best_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "digit_classifier", "export", f"ckpt_path={best_checkpoint}", "formats=[onnx]"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    name_dir = tmp_path / "artifacts/digit_classifier"
    assert sorted(path.name for path in name_dir.iterdir()) == ["1", "2", "config.pbtxt"]
    for version in (1, 2):
        assert verify(name_dir / str(version))["version"] == version


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("export.opset=99", "export.opset=99 is out of range"),
        ("paths.artifact_dir=taken", "taken/digit_classifier cannot be written: "),
    ],
)
def test_export_that_is_refused_leaves_earlier_versions_as_they_are(
    option: str, sentence: str, bundle: Path, best_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.parents[1], tmp_path / "artifacts")
    (tmp_path / "taken").write_text("a file where the folder should be", encoding="utf-8")
    before = {path: path.read_bytes() for path in (tmp_path / "artifacts").rglob("*") if path.is_file()}
    refused = run_command("export", f"ckpt_path={best_checkpoint}", option, cwd=tmp_path, check=False)
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert {path: path.read_bytes() for path in (tmp_path / "artifacts").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "logs") == ["artifacts", "taken"]


@pytest.mark.parametrize("limit", [1_000, 30_000, 100_000], ids=["a setting", "a picture", "the model"])
def test_full_disk_leaves_nothing_and_says_so(best_checkpoint: Path, tmp_path: Path, limit: int) -> None:
    """No file of more than `limit` bytes can be written, as if the disk were full then."""
    (tmp_path / "artifacts").mkdir()

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    options = [f"ckpt_path={best_checkpoint}", "formats=[onnx,torchscript]", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "digit_classifier", "export", *options]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    stays = "; nothing was published|; what was saved before it stays"
    assert re.fullmatch(rf"error: .* cannot be (read or )?written: File too large({stays})?\.", line)
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_file_of_the_data_that_is_missing_is_no_matter_of_the_disk(
    best_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.load(best_checkpoint)
    datamodule = checkpoint.datamodule({})
    monkeypatch.setattr(datamodule, "prepare_data", lambda: (tmp_path / "absent.npy").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        export(checkpoint, datamodule, {}, ["onnx"], OPTIONS, tmp_path / "artifacts")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_at_the_very_end_leaves_nothing(
    best_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are written and the gate has let them through; the manifest does not fit any more."""

    def full(contents: object, folder: Path, sign: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint = checkpoints.load(best_checkpoint)
    datamodule = checkpoint.datamodule({})
    monkeypatch.setattr("digit_classifier.engine.workflows.exporting.write_manifest", full)
    with pytest.raises(UserError, match=r"made cannot be written: No space left on device; nothing was published"):
        export(checkpoint, datamodule, {}, ["onnx"], OPTIONS, tmp_path / "artifacts")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export(checkpoint, datamodule, {}, ["onnx"], OPTIONS, tmp_path / "artifacts")
    assert sorted(path.name for path in (tmp_path / "artifacts/made").iterdir()) == ["1", "config.pbtxt"]


def test_network_that_is_another_one_whenever_it_is_built_is_refused(
    best_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it draws is no part of its state, so the checkpoint does not hold what was trained."""
    built, answered = CNN.__init__, CNN.forward

    @functools.wraps(built)
    def build(self: CNN, *arguments: Any, **options: Any) -> None:
        built(self, *arguments, **options)
        self.drawn = [torch.randn(10)]

    monkeypatch.setattr(CNN, "__init__", build)
    monkeypatch.setattr(CNN, "forward", lambda self, x: answered(self, x) + self.drawn[0])
    checkpoint = checkpoints.load(best_checkpoint)
    datamodule = checkpoint.datamodule({})
    with pytest.raises(GateFailure, match="the network answers otherwise once it is built anew"):
        export(checkpoint, datamodule, {}, ["onnx"], OPTIONS, tmp_path / "artifacts")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_this_machine_are_not_published() -> None:
    section = {"weights": "/srv/somebody/pretrained.ckpt", "net": [{"file": "/data/a.csv", "width": 8}], "name": "a/b"}
    assert publishing.without_local_paths(section) == {
        "weights": "pretrained.ckpt",
        "net": [{"file": "a.csv", "width": 8}],
        "name": "a/b",
    }


def test_interrupted_export_leaves_nothing(best_checkpoint: Path, tmp_path: Path) -> None:
    with started("export", f"ckpt_path={best_checkpoint}", cwd=tmp_path) as process:
        wait_for(process, "verifying")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "artifacts").exists()


CUSTOM_OPERATOR = """
import torch
import digit_classifier.models.cnn as cnn
from digit_classifier.export import main

@torch.library.custom_op("shop::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@doubled.register_fake
def _(x):
    return torch.empty_like(x)

whole = cnn.CNN.forward
cnn.CNN.forward = lambda self, x: doubled(whole(self, x))
main()
"""


SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("torchscript", "torch_export", "onnx_int8")]


@pytest.mark.parametrize("name", ["onnx", *SLOWLY])
def test_custom_operator_is_refused_by_name(best_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A user's machine does not have it: what would need it there is not published."""
    command = [sys.executable, "-c", CUSTOM_OPERATOR, f"ckpt_path={best_checkpoint}", f"formats=[{name}]"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused.stderr
    assert re.search(r"error: .*shop(::|\.)doubled", refused.stderr), refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "artifacts").exists()


def test_bundle_of_another_signature_gets_a_name_of_its_own(best_checkpoint: Path, tmp_path: Path) -> None:
    bundle = exported(best_checkpoint, tmp_path, "formats=[safetensors]")
    manifest = read_manifest(bundle)
    logits, probabilities = manifest["outputs"]
    probabilities["labels"].reverse()
    other = json.dumps({**manifest, "outputs": [logits, probabilities]})
    (bundle / "manifest.json").write_text(other, encoding="utf-8")
    options = ("export", f"ckpt_path={best_checkpoint}", "formats=[safetensors]")
    said = run_command(*options, cwd=tmp_path).stdout
    assert "name        digits_cnn: what artifacts/digit_classifier holds has another signature" in said
    run_command(*options, cwd=tmp_path)
    run_command(*options, "export.name=mine", cwd=tmp_path)
    found = {path.name: sorted(os.listdir(path)) for path in (tmp_path / "artifacts").iterdir()}
    assert found == {"digit_classifier": ["1"], "digits_cnn": ["1", "2"], "mine": ["1"]}


def test_standing_configuration_of_another_model_is_kept(best_checkpoint: Path, tmp_path: Path) -> None:
    bundle = exported(best_checkpoint, tmp_path, "formats=[onnx]")
    config = bundle.parent / "config.pbtxt"
    before = config.read_text(encoding="utf-8")
    for options, sentence in (
        (["formats=[onnx]", "export.max_batch_size=8"], "lets batches of 64 through"),
        (["formats=[torchscript]"], "serves model.onnx: add onnx to formats, or give another export.name="),
    ):
        refused = run_command("export", f"ckpt_path={best_checkpoint}", *options, cwd=tmp_path, check=False)
        assert refused.returncode == 2
        assert sentence in refused.stderr
        assert "exporting" not in refused.stdout, "it is refused before the work"
    assert config.read_text(encoding="utf-8") == before
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["1", "config.pbtxt"]
    verify(bundle)


def test_commands_of_the_model_card_work(all_formats: Path, tmp_path: Path) -> None:
    """But for the server itself, which is not here; its request is the protocol's."""
    bundle = Path(shutil.copytree(all_formats, tmp_path / "bundle"))
    text = (bundle / "README.md").read_text(encoding="utf-8")
    python = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", python], cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'label': " in done.stdout
    (request,) = re.findall(r"```bash\n(.*?)curl", text, re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-ec", request], cwd=bundle, env=os.environ | {"PATH": path}, check=True)
    (tensor,) = json.loads((bundle / "request.json").read_text(encoding="utf-8"))["inputs"]
    golden = np.load(bundle / "golden.npz")["x"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("x", "UINT8", [1, *golden.shape[1:]])
    assert tensor["data"] == golden[0].ravel().tolist()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="not run: g++ is not installed")
def test_cpp_of_the_model_card_compiles_and_runs(all_formats: Path, tmp_path: Path) -> None:
    """Against the libtorch that lies in torch's own package."""
    (code,) = re.findall(r"```cpp\n(.*?)```", (all_formats / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "main.cpp").write_text(code, encoding="utf-8")
    shutil.copy(all_formats / "model.pt", tmp_path)
    home = Path(torch.__file__).parent
    include, lib = [f"-I{home}/include{folder}" for folder in ("", "/torch/csrc/api/include")], home / "lib"
    options = ["-std=c++20", "-O0", *include, f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"]
    subprocess.run(["g++", "main.cpp", *options, "-o", "main"], cwd=tmp_path, check=True)
    printed = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    figures = [float(figure) for figure in re.findall(r"\d\.\d+e?[-+\d]*", printed)]
    assert "CPUFloatType{1,10}" in printed
    expected = exporter("torchscript").load(all_formats / "model.pt")({"x": np.zeros((1, 1, 8, 8), np.uint8)})
    assert figures == pytest.approx(expected["probabilities"][0].tolist(), abs=1e-4), printed


def test_deep_copy_of_a_network_with_tied_weights_exports(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory: each is written for itself."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.second = nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.last = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(self.second(self.first(x.flatten(1))))
            return logits

    spec = DigitsDataModule().spec
    classifier = Classifier(spec, net=lambda _: Tied(), optimizer=torch.optim.Adam)
    source = source_of(classifier, [{"x": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}])
    for name in EXACT_FORMATS:
        path = tmp_path / FORMATS[name].file
        path.write_bytes(exporter(name).export(source))
        exporter(name).check(path, source.contract)


def test_file_that_ends_its_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(GateFailure, match="cannot be loaded and run in a fresh process: "):
        isolated_answers("onnx", path, [{"x": np.zeros((2, 1, 8, 8), np.uint8)}], 1)


@pytest.mark.parametrize("name", ["onnx", "onnx_fp16"])
def test_file_that_changes_the_metrics_of_the_test_loop_is_refused(
    name: str, best_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = checkpoints.load(best_checkpoint)
    limits = Limits(64, 1e-5, 0.005)
    trained_model = Trained.of(checkpoint, checkpoint.datamodule({}), {}, 64)
    source = replace(
        trained_model.source(Contract("made", trained_model.signature, "0" * 64, 18)), options=FORMATS[name].options
    )
    path = tmp_path / FORMATS[name].file
    path.write_bytes(exporter(name).export(source))
    parity, call = Parity(name, path.name, 1, 0.0, 0, 0, 0.0), trained_model.network.call
    described = description_of(trained_model.module)
    with MetricGate(best_checkpoint, {}, call, limits, described, checkpoint.monitor) as gate:
        gate.measure(trained_model.module, 1e-5)
        assert (gate.reason, gate.random) == (None, [])
        assert gate.judge(parity, tmp_path)["test/acc"] == pytest.approx(gate.expected["test/acc"], abs=0.005)
        model = onnx.load(path)
        biases = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [10]]
        values = onnx.numpy_helper.to_array(biases[0]).copy()
        values[0] += 3
        biases[0].CopyFrom(onnx.numpy_helper.from_array(values, biases[0].name))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(GateFailure, match=rf"{path.name} has test/\w+ [\d.]+ on the test split, the trained model"):
            gate.judge(parity, tmp_path)


def test_tolerance_of_the_outputs_does_not_loosen_the_metrics(best_checkpoint: Path, tmp_path: Path) -> None:
    options = [f"ckpt_path={best_checkpoint}", "formats=[onnx]", "export.tolerance=1000"]
    code = SPOILED_EXPORT.replace("PACKAGE", "digit_classifier").replace("[:9]", "[:90]")
    command = [sys.executable, "-c", code, *options]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused.stdout
    assert re.search(r"error: model.onnx has test/\w+ [\d.]+ on the test split, the trained model", refused.stderr)
    assert not (tmp_path / "artifacts").exists()


def changed_project(folder: Path, old: str, new: str) -> dict[str, str]:
    """A copy of the project's source with another classifier; returns the environment for its commands."""
    source = Path(shutil.copytree(Path(package.__file__).parents[1], folder / "src"))
    path = source / package.__name__ / "models/classifier.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(source)}


@pytest.mark.parametrize(
    ("old", "new", "sentence", "published"),
    [
        (
            'self.log("test/loss",',
            'self.log("test/clock", float(__import__("time").perf_counter() % 1))\n        self.log("test/loss",',
            "test/clock differs between two runs with one seed, so it is not compared",
            True,
        ),
        ('metric="test/acc"', 'metric="test/accuracy"', "names metric='test/accuracy', which the test loop", False),
        ('            result="logits",\n', "", "deployed() of Classifier gives a network and no result=", False),
    ],
    ids=["a random metric", "a metric that is not logged", "no result"],
)
def test_metrics_that_cannot_be_compared_are_named(
    old: str, new: str, sentence: str, published: bool, best_checkpoint: Path, tmp_path: Path
) -> None:
    environment = changed_project(tmp_path, old, new)
    command = [sys.executable, "-m", package.__name__, "export", f"ckpt_path={best_checkpoint}"]
    command.append("formats=[onnx,onnx_fp16]")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert sentence in done.stdout + done.stderr
    assert (done.returncode == 0) == published, done.stderr
    assert "Traceback" not in done.stderr
    if published:
        (manifest,) = tmp_path.glob("artifacts/*/1/manifest.json")
        assert json.loads(manifest.read_text(encoding="utf-8"))["random_metrics"] == ["test/clock"]
