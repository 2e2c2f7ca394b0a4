"""The gate lets through what was trained, and nothing else. Each mutation first shows the unspoiled file passing."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule
from {{ cookiecutter.package_name }}.exporters import FILES, format_named
from {{ cookiecutter.package_name }}.exporters.gate import Gate, Samples, difference
from {{ cookiecutter.package_name }}.exporters.network import GateFailure, Signature, deployed
from {{ cookiecutter.package_name }}.models.classifier import Classifier
from {{ cookiecutter.package_name }}.models.cnn import CNN

OPSET = 18


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(1)
    return Classifier(
        DigitsDataModule().spec,
        net=lambda spec: nn.Sequential(CNN(spec, [8, 8], num_groups=4, dropout=0.5), nn.BatchNorm1d(10)),
        optimizer=torch.optim.Adam,
    )


@pytest.fixture(scope="module")
def samples() -> Samples:
    test = DigitsDataModule().samples["test"]
    return Samples(test.inputs.numpy()[:90], test.labels.numpy()[:90])


@pytest.fixture(scope="module")
def gate(classifier: Classifier, samples: Samples) -> Gate:
    network = deployed(classifier)
    return Gate(network, Signature.of(classifier.spec), samples, max_batch_size=64, tolerance=1e-5)


@pytest.fixture(scope="module")
def exported(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_all(gate.network, folder)
    return folder


def write_all(network: nn.Module, folder: Path) -> None:
    example = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for name, file in FILES.items():
        format_named(name).export(network, example, folder / file, opset=OPSET, summary={"name": "made"})


def copy_files(exported: Path, folder: Path) -> Path:
    for file in FILES.values():
        (folder / file).write_bytes((exported / file).read_bytes())
    return folder


@pytest.mark.parametrize("name", FILES)
def test_what_was_trained_passes(gate: Gate, exported: Path, name: str) -> None:
    parity = gate.admit(name, exported, opset=OPSET)
    assert parity.largest_difference < 1e-5
    assert parity.num_agreeing == parity.num_samples == 90
    assert gate.batch_sizes == [1, 2, 7, 64]


def test_batch_larger_than_the_test_split_is_tried_too(
    classifier: Classifier, samples: Samples, exported: Path
) -> None:
    gate = Gate(deployed(classifier), Signature.of(classifier.spec), samples, max_batch_size=200, tolerance=1e-5)
    assert gate.admit("onnx", exported, opset=OPSET).num_samples == 90


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
    ],
)
def test_spoiled_onnx_is_caught(gate: Gate, exported: Path, tmp_path: Path, spoil: object, sentence: str) -> None:
    path = copy_files(exported, tmp_path) / FILES["onnx"]
    model = onnx.load(path)
    assert callable(spoil)
    spoil(model)
    onnx.save(model, path)
    with pytest.raises(GateFailure, match=sentence):
        gate.admit("onnx", tmp_path, opset=OPSET)


def test_spoiled_torchscript_is_caught(gate: Gate, classifier: Classifier, exported: Path, tmp_path: Path) -> None:
    spoiled = copy.deepcopy(deployed(classifier))
    next(parameter for parameter in spoiled.parameters() if parameter.ndim == 4)[0, 0, 0, 0] += 0.01
    write_all(spoiled, tmp_path)
    with pytest.raises(GateFailure, match=r"model.pt differs from the trained model"):
        gate.admit("torchscript", tmp_path, opset=OPSET)
    (tmp_path / FILES["torchscript"]).write_bytes((exported / FILES["torchscript"]).read_bytes()[:1000])
    with pytest.raises(GateFailure, match=r"model.pt cannot be read"):
        gate.admit("torchscript", tmp_path, opset=OPSET)


# torch runs a trace again, and warns of what these tests do on purpose: a random layer answers differently.
in_training_mode = pytest.mark.filterwarnings(
    "ignore:Output nr \\d+. of the traced function:torch.jit.TracerWarning:torch.jit._trace"
)


@in_training_mode
@pytest.mark.parametrize(
    ("name", "layer"), [("onnx", nn.Dropout), ("torchscript", nn.Dropout), ("torchscript", nn.BatchNorm1d)]
)
def test_layer_left_in_training_mode_is_caught(
    gate: Gate, classifier: Classifier, tmp_path: Path, name: str, layer: type[nn.Module]
) -> None:
    network = copy.deepcopy(deployed(classifier))
    for module in network.modules():
        module.training = isinstance(module, layer)
    write_all(network, tmp_path)
    with pytest.raises(GateFailure, match="exported in training mode"):
        gate.admit(name, tmp_path, opset=OPSET)


@in_training_mode
def test_torchscript_graph_that_trains_behind_an_eval_flag_is_caught(gate: Gate, tmp_path: Path) -> None:
    class Sneaky(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = nn.functional.dropout(x.flatten(1).float()[:, :10], p=0.5, training=True)
            return logits, logits.softmax(1)

    write_all(Sneaky().eval(), tmp_path)
    for name in FILES:
        with pytest.raises(GateFailure, match="exported in training mode"):
            gate.admit(name, tmp_path, opset=OPSET)


def test_no_path_or_stack_trace_is_left_in_the_onnx_file(exported: Path) -> None:
    contents = (exported / FILES["onnx"]).read_bytes()
    for leaked in (b"stack_trace", b".py", b"/home", str(Path.cwd()).encode()):
        assert leaked not in contents
    model = onnx.load(exported / FILES["onnx"])
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("name", "made")]


def test_difference_in_any_test_sample_is_caught(classifier: Classifier, samples: Samples, exported: Path) -> None:
    """The batches of the gate hold the first samples only; the last one of the split is compared too."""
    small = Gate(deployed(classifier), Signature.of(classifier.spec), samples, max_batch_size=2, tolerance=1e-5)
    assert small.admit("onnx", exported, opset=OPSET).num_samples == 90
    small.logits[-1, 0] += 0.01
    with pytest.raises(GateFailure, match="in the logits of the test split"):
        small.admit("onnx", exported, opset=OPSET)


@pytest.mark.parametrize("tolerance", [float("nan"), 0.0])
def test_tolerance_that_nothing_meets_lets_nothing_through(
    classifier: Classifier, samples: Samples, exported: Path, tolerance: float
) -> None:
    gate = Gate(deployed(classifier), Signature.of(classifier.spec), samples, max_batch_size=7, tolerance=tolerance)
    with pytest.raises(GateFailure, match="differs from the trained model"):
        gate.admit("onnx", exported, opset=OPSET)


def test_difference_is_absolute_for_small_and_relative_for_large_values() -> None:
    assert difference(np.array([0.5]), np.array([0.25])) == 0.25
    assert difference(np.array([110.0]), np.array([100.0])) == pytest.approx(0.1)
    assert difference(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert difference(np.zeros((1, 2)), np.zeros((2, 1))) == float("inf")
