"""The gate lets through what was trained, and nothing else. Each mutation first shows the unspoiled file passing."""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import onnx
import pytest
import torch
from digits import Digits, convolutions
from lightning.pytorch.callbacks import Callback
from sources import Wrapped, reference_of, source_of
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.export.contract import GateFailure
from {{ cookiecutter.package_name }}.engine.export.formats import FORMATS, exporter
from {{ cookiecutter.package_name }}.engine.export.gate import Limits, Parity, Reference, admit
from {{ cookiecutter.package_name }}.engine.export.loops import run_loop
from {{ cookiecutter.package_name }}.engine.export.network import Source, eager
from {{ cookiecutter.package_name }}.engine.inference.runtime import difference
from {{ cookiecutter.package_name }}.models.classifier import Classifier

LIMITS = Limits(max_batch_size=64, tolerance=1e-5, max_metric_loss=0.05)
WRITTEN = [name for name in FORMATS if name != "safetensors"]  # which needs a network that a configuration names
REDUCED = [name for name, format in FORMATS.items() if not format.exact]
Spoil = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def data() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def classifier(data: Digits) -> Classifier:
    torch.manual_seed(1)
    classifier = Classifier(
        data.spec,
        net=lambda spec: nn.Sequential(convolutions(spec, dropout=0.5), nn.BatchNorm1d(10)),
        optimizer=torch.optim.Adam,
    )
    optimizer, train = torch.optim.Adam(classifier.parameters(), lr=0.01), data.samples["train"]
    for start in range(0, 1200, 64):  # else the labels hang on the last digits, which 8 bits do not hold
        optimizer.zero_grad()
        inputs, labels = train.inputs[start : start + 64], train.labels[start : start + 64]
        nn.functional.cross_entropy(classifier(inputs), labels).backward()
        optimizer.step()
    return classifier


def test_metric_that_is_not_logged_begins_anew_in_each_loop(data: Digits, classifier: Classifier) -> None:
    """It is plotted in the model card, after loops that only record what `forward` is called with."""
    totals = []

    class Total(Callback):
        def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            totals.append(int(classifier.confusion_matrix.compute().sum()))

    for _ in range(2):
        run_loop(classifier, data, callbacks=[Total()])
    assert totals == [len(data.samples["test"])] * 2


@pytest.fixture(scope="module")
def real(data: Digits) -> list[dict[str, Tensor]]:
    """Samples of the test split, in batches of 60 and 30."""
    inputs = data.samples["test"].inputs
    return [{"x": inputs[:60]}, {"x": inputs[60:90]}]


@pytest.fixture(scope="module")
def source(classifier: Classifier, real: list[dict[str, Tensor]]) -> Source:
    return source_of(classifier, real)


@pytest.fixture(scope="module")
def reference(source: Source, real: list[dict[str, Tensor]]) -> Reference:
    return reference_of(source, real)


@pytest.fixture(scope="module")
def exported(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write(source, folder, *WRITTEN)
    return folder


def write(source: Source, folder: Path, *names: str) -> None:
    for name in names:
        contents = exporter(name).export(replace(source, options=FORMATS[name].options))
        (folder / FORMATS[name].file).write_bytes(contents)


def copied(exported: Path, folder: Path, name: str) -> Path:
    path = folder / FORMATS[name].file
    path.write_bytes((exported / path.name).read_bytes())
    return path


def admitted(name: str, folder: Path, source: Source, reference: Reference, limits: Limits = LIMITS) -> Parity:
    return admit(name, folder, source.contract, reference, limits)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_trained_passes(source: Source, exported: Path, reference: Reference, name: str) -> None:
    assert reference.sizes == [1, 2, 7, 64]
    parity = admitted(name, exported, source, reference)
    assert parity.num_samples == 90
    if FORMATS[name].exact:
        assert parity.largest_difference < 1e-5
        assert parity.num_agreeing == 90
    else:
        assert parity.num_agreeing > 80


def test_batch_larger_than_the_test_split_is_tried_too(
    classifier: Classifier, real: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    source = source_of(classifier, real, 200)
    reference = reference_of(source, real, 200)
    assert reference.sizes == [1, 2, 7, 64, 200]
    write(source, tmp_path, "onnx")
    assert admitted("onnx", tmp_path, source, reference, replace(LIMITS, max_batch_size=200)).num_samples == 90


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_any_number_of_samples_calibrates(source: Source, tmp_path: Path, calibration: str) -> None:
    """100: more than the largest batch, and no multiple of it."""
    options = {**FORMATS["onnx_int8"].options, "num_calibration_samples": 100, "calibration": calibration}
    path = tmp_path / FORMATS["onnx_int8"].file
    path.write_bytes(exporter("onnx_int8").export(replace(source, options=options)))
    exporter("onnx_int8").check(path, source.contract)


@pytest.mark.parametrize("name", REDUCED)
def test_file_that_was_not_reduced_is_caught(source: Source, exported: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / FORMATS[name].file).write_bytes((exported / FORMATS["onnx"].file).read_bytes())
    with pytest.raises(GateFailure, match="holds no weight of"):
        exporter(name).check(tmp_path / FORMATS[name].file, source.contract)


def spoil_weight(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.01
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def swap_outputs(model: onnx.ModelProto) -> None:
    first, second = (onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.output)
    model.graph.output[0].CopyFrom(second)
    model.graph.output[1].CopyFrom(first)


def change_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


def train_batch_norm(model: onnx.ModelProto) -> None:
    ones = onnx.numpy_helper.from_array(np.ones(10, dtype=np.float32), "ones")
    model.graph.initializer.append(ones)
    inputs, outputs = ["logits", *["ones"] * 4], ["normalised", "mean", "var"]
    model.graph.node.append(onnx.helper.make_node("BatchNormalization", inputs, outputs, training_mode=1))


def wrong_labels(model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if entry.key == "outputs":
            entry.value = entry.value.replace('"0"', '"O"')


def external_data(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "elsewhere.bin")


def swap_figures(model: onnx.ModelProto) -> None:
    """The names stay, what they hold is exchanged: the most likely label would not tell."""
    for value in model.graph.output:
        other = {"logits": "probabilities", "probabilities": "logits"}[value.name]
        model.graph.node.append(onnx.helper.make_node("Identity", [f"{other}_before"], [value.name]))
    for node in list(model.graph.node)[:-2]:
        for names in (node.input, node.output):
            names[:] = [f"{name}_before" if name in ("logits", "probabilities") else name for name in names]


def break_graph(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_weight, "differs from the trained model"),
        (fix_batch, "batches of 2 only"),
        (swap_outputs, "outputs probabilities, logits"),
        (change_opset, "has opset 20"),
        (train_batch_norm, "exported in training mode"),
        (break_graph, "refused by the ONNX checker"),
        (wrong_labels, "says of itself outputs="),
        (external_data, "in another file"),
        (swap_figures, "differs from the trained model"),
    ],
)
def test_spoiled_onnx_is_caught(
    source: Source, exported: Path, reference: Reference, tmp_path: Path, spoil: Spoil, sentence: str
) -> None:
    path = copied(exported, tmp_path, "onnx")
    model = onnx.load(path)
    spoil(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GateFailure, match=sentence):
        admitted("onnx", tmp_path, source, reference)


@pytest.mark.parametrize("name", REDUCED)
def test_swapped_figures_of_a_reduced_format_are_caught(
    source: Source, exported: Path, reference: Reference, tmp_path: Path, name: str
) -> None:
    path = copied(exported, tmp_path, name)
    model = onnx.load(path)
    swap_figures(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GateFailure, match=r"that is off by .* it is another output"):
        admitted(name, tmp_path, source, reference)


@pytest.mark.parametrize("name", ["torchscript", "torch_export"])
def test_spoiled_torch_file_is_caught(
    source: Source, exported: Path, reference: Reference, tmp_path: Path, name: str
) -> None:
    spoiled = copy.deepcopy(source.network)
    next(parameter for parameter in spoiled.parameters() if parameter.ndim == 4)[0, 0, 0, 0] += 0.01
    write(replace(source, network=spoiled), tmp_path, name)
    path = tmp_path / FORMATS[name].file
    with pytest.raises(GateFailure, match=f"{path.name} differs from the trained model"):
        admitted(name, tmp_path, source, reference)
    path.write_bytes((exported / path.name).read_bytes()[:1000])
    with pytest.raises(GateFailure, match=f"{path.name} cannot be read"):
        admitted(name, tmp_path, source, reference)


def test_fixed_batch_axis_of_torch_export_is_caught(source: Source, tmp_path: Path) -> None:
    path = tmp_path / FORMATS["torch_export"].file
    torch.export.save(torch.export.export(source.network, source.tensors), path)
    with pytest.raises(GateFailure, match="batches of 2 only"):
        exporter("torch_export").check(path, source.contract)


# torch runs a trace again, and warns of what these tests do on purpose: a random layer answers differently.
in_training_mode = pytest.mark.filterwarnings(
    "ignore:Output nr \\d+. of the traced function:torch.jit.TracerWarning:torch.jit._trace"
)


@in_training_mode
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("onnx", nn.Dropout),
        ("onnx_int8", nn.Dropout),
        ("onnx_fp16", nn.Dropout),
        ("torchscript", nn.Dropout),
        ("torchscript", nn.BatchNorm1d),
        ("torch_export", nn.Dropout),
        ("torch_export", nn.BatchNorm1d),
    ],
)
def test_layer_left_in_training_mode_is_caught(
    source: Source, exported: Path, tmp_path: Path, name: str, layer: type[nn.Module]
) -> None:
    exporter(name).check(exported / FORMATS[name].file, source.contract)
    network = copy.deepcopy(source.network)
    for module in network.modules():
        module.training = isinstance(module, layer)
    write(replace(source, network=network), tmp_path, name)
    with pytest.raises(GateFailure, match="exported in training mode"):
        exporter(name).check(tmp_path / FORMATS[name].file, source.contract)


@in_training_mode
def test_graph_that_trains_behind_an_eval_flag_is_caught(source: Source, tmp_path: Path) -> None:
    class Sneaky(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = nn.functional.dropout(x.flatten(1).float()[:, :10], p=0.5, training=True)
            return logits, logits.softmax(1)

    network = copy.deepcopy(source.network)
    network.network, network.is_forward = Sneaky().eval(), False
    sneaky = replace(source, network=network)
    for name in ("onnx", "torchscript", "torch_export"):
        write(sneaky, tmp_path, name)
        with pytest.raises(GateFailure, match="exported in training mode"):
            exporter(name).check(tmp_path / FORMATS[name].file, source.contract)


class Double(nn.Module):
    """Has a figure of its own that 32 bits do not hold, and answers in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fine", torch.tensor(1e8 + 1 / 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).double()[:, :10] + (self.fine - 1e8)


def test_double_precision_of_a_network_is_kept_and_its_answers_are_float32(tmp_path: Path) -> None:
    inputs = np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8)
    source = source_of(Wrapped(Double()), [{"x": torch.from_numpy(inputs)}])
    expected = inputs.reshape(2, 64)[:, :10] + np.float32(1 / 3)
    names = ("onnx", "torchscript", "torch_export")
    write(source, tmp_path, *names)
    for run in (eager(source.network), *(exporter(name).load(tmp_path / FORMATS[name].file) for name in names)):
        output = run({"x": inputs})["output"]
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4)


def test_network_that_drops_the_axis_of_a_batch_of_one_is_refused(
    classifier: Classifier, real: list[dict[str, Tensor]]
) -> None:
    class Squeezing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = classifier(x)
            return logits.squeeze(0)

    source = source_of(Wrapped(Squeezing()), real)
    with pytest.raises(GateFailure, match=r"Squeezing \(test_gate.py:\d+\) answers 1 samples with \(10,\)"):
        reference_of(source, real)


def test_model_that_answers_with_nan_is_refused_as_such(source: Source, real: list[dict[str, Tensor]]) -> None:
    spoiled = copy.deepcopy(source.network)
    next(spoiled.parameters()).fill_(float("nan"))
    with pytest.raises(GateFailure, match="the trained model answers samples of the test split with NaN"):
        reference_of(replace(source, network=spoiled), real)


class OneBranch(nn.Module):
    """Looks at a value, of which a trace would keep one branch, or at a shape."""

    def __init__(self, value: bool) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = x.flatten(1).float()[:, :10]
        if (logits.sum() > 1e9) if self.value else (logits.shape[1] != 10):
            logits = -logits
        return logits, logits.softmax(1)


def test_branch_on_a_value_is_refused_and_one_on_a_shape_is_not(real: list[dict[str, Tensor]], tmp_path: Path) -> None:
    write(source_of(Wrapped(OneBranch(value=False)), real), tmp_path, "torchscript")
    with pytest.raises(RuntimeError, match="data-dependent"):
        write(source_of(Wrapped(OneBranch(value=True)), real), tmp_path, "torchscript")


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_process_that_only_runs_a_file_does_not_import_lightning(name: str) -> None:
    """It takes seconds, of every file that is verified."""
    code = f"import sys, {exporter(name).__name__}; sys.exit('lightning' in sys.modules)"  # type: ignore[attr-defined]
    subprocess.run([sys.executable, "-c", code], check=True)


def test_difference_in_any_test_sample_is_caught(source: Source, reference: Reference, exported: Path) -> None:
    """The batches of the sizes that are verified hold the first samples only."""
    items = [(inputs, dict(outputs)) for inputs, outputs in reference.items]
    logits = items[-1][1]["logits"].copy()
    logits[-1, 0] += 0.01
    items[-1][1]["logits"] = logits
    sentence = "in 'logits' of the test split in sample 29, and 29 of 30 samples agree"
    with pytest.raises(GateFailure, match=sentence):
        admitted("onnx", exported, source, replace(reference, items=items))


@pytest.mark.parametrize("tolerance", [float("nan"), 0.0])
def test_tolerance_that_nothing_meets_lets_nothing_through(
    source: Source, exported: Path, reference: Reference, tolerance: float
) -> None:
    exact = replace(reference, rounding=dict.fromkeys(reference.rounding, 0.0))
    with pytest.raises(GateFailure, match="differs from the trained model"):
        admitted("onnx", exported, source, exact, replace(LIMITS, tolerance=tolerance))


class OverTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.rand_like(x)


class InFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(10, 10, dtype=torch.float32)


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (nn.Identity(), ""),
        (InFloat32(), ""),
        (OverTheBatch(), r"depends on the rest of its batch: 'output' of sample 0 of the test split differs by"),
        (nn.BatchNorm1d(10, track_running_stats=False), "cannot answer a single sample: Expected more than 1 value"),
        (nn.Sequential(InFloat32(), OverTheBatch()), "depends on the rest of its batch"),
        (Drawing(), "answers a sample differently a second time"),
    ],
)
def test_answer_that_depends_on_its_batch_is_refused(
    classifier: Classifier, real: list[dict[str, Tensor]], last: nn.Module, sentence: str
) -> None:
    source = source_of(Wrapped(nn.Sequential(classifier.net, last)), real)
    if sentence:
        with pytest.raises(GateFailure, match=sentence):
            reference_of(source, real)
    else:
        reference_of(source, real)


class LowContrast(nn.Module):
    """A GroupNorm amplifies the rounding of pictures that are nearly of one grey."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.norm, self.last = nn.GroupNorm(8, 8), nn.Linear(8 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        contrast = 100 + 2e-3 * x.to(self.last.weight.dtype)
        output: Tensor = self.last(self.norm(self.first(contrast)).flatten(1))
        return output


def test_network_that_amplifies_rounding_passes_and_its_spoiled_file_does_not(
    real: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = LowContrast()
    amplified = source_of(Wrapped(network), real)
    reference, limits = reference_of(amplified, real), LIMITS
    assert reference.tolerance("output", limits) == 16 * reference.rounding["output"]
    write(amplified, tmp_path, "onnx")
    parity = admitted("onnx", tmp_path, amplified, reference, limits)
    assert limits.tolerance < parity.largest_difference <= reference.tolerance("output", limits)
    network.last.weight[0, 0] += 0.05
    write(amplified, tmp_path, "onnx")
    with pytest.raises(GateFailure, match="differs from the trained model"):
        admitted("onnx", tmp_path, amplified, reference, limits)


def test_difference_is_absolute_for_small_and_relative_for_large_values() -> None:
    assert difference(np.array([0.5]), np.array([0.25])) == 0.25
    assert difference(np.array([110.0]), np.array([100.0])) == pytest.approx(0.1)
    assert difference(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert difference(np.zeros((1, 2)), np.zeros((2, 1))) == float("inf")
