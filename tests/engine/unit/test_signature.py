"""The signature of any `forward`: names, free axes and structures, and the refusals of what cannot be exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sources import reference_of, source_of
from torch import Tensor, nn

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.contract import GateFailure
from {{ cookiecutter.package_name }}.engine.export.formats import FORMATS, exporter
from {{ cookiecutter.package_name }}.engine.export.gate import Limits, admit
from {{ cookiecutter.package_name }}.engine.export.loops import from_example
from {{ cookiecutter.package_name }}.engine.export.network import Call, eager, flattened, restored
from {{ cookiecutter.package_name }}.engine.export.pipeline import synthetic
from {{ cookiecutter.package_name }}.engine.inference.signature import Column, Signature, TensorSignature
from {{ cookiecutter.package_name }}.engine.spec import Deployed, Input, Output

LIMITS = Limits(max_batch_size=8, tolerance=1e-5, max_metric_loss=0.005)
NUM_WORDS = 20


class Texts(pl.LightningModule):
    """Words and their mask `(B, T)` to a dict of scores `(B, 2)` and of what it computes for each word `(B, T, 4)`."""

    def __init__(self, **described: Any) -> None:
        super().__init__()
        self.words, self.head, self.described = nn.Embedding(NUM_WORDS, 4), nn.Linear(4, 2), Deployed(**described)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        found = self.words(ids) * mask[:, :, None]
        return {"scores": self.head(found.sum(1) / mask.sum(1, keepdim=True)), "words": found, "nothing": None}

    def deployed(self) -> Deployed:
        return self.described


def texts(*lengths: int, size: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, NUM_WORDS, (size, length), generator=generator) for length in lengths]
    return [{"ids": words, "mask": torch.ones(words.shape, dtype=torch.long)} for words in ids]


def test_axes_whose_size_differs_are_free_and_shared_where_they_agree() -> None:
    signature = source_of(Texts(), texts(5, 7, 9)).contract.signature
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in signature.inputs] == [
        ("ids", "int64", ("batch", "ids_1")),
        ("mask", "int64", ("batch", "ids_1")),
    ]
    assert [(tensor.name, tensor.shape) for tensor in signature.outputs] == [
        ("scores", ("batch", 2)),
        ("words", ("batch", "ids_1", 4)),
    ]
    fixed = source_of(Texts(), texts(5, 5)).contract.signature
    assert [tensor.shape for tensor in (*fixed.inputs, *fixed.outputs)][:2] == [("batch", 5), ("batch", 5)]
    few = source_of(Texts(), texts(5, 7)).contract.signature
    assert few.inputs[1].shape == ("batch", "ids_1"), "the network takes no lengths that differ"


def test_axes_are_named_and_freed_by_hand() -> None:
    tokens = Input(axes={1: "tokens"})
    source = source_of(Texts(inputs={"ids": tokens, "mask": tokens}), texts(5, 5))
    signature = source.contract.signature
    shapes = {tensor.name: tensor.shape for tensor in (*signature.inputs, *signature.outputs)}
    assert shapes["mask"] == ("batch", "tokens")
    assert shapes["words"] == ("batch", "tokens", 4)


@pytest.mark.parametrize("name", ["onnx", "torchscript", "torch_export"])
def test_exact_files_of_several_inputs_and_free_axes_pass_the_gate(name: str, tmp_path: Path) -> None:
    real = texts(5, 7, 9)
    source = source_of(Texts(), real, LIMITS.max_batch_size)
    reference = reference_of(source, real, LIMITS.max_batch_size)
    (tmp_path / FORMATS[name].file).write_bytes(exporter(name).export(source))
    parity = admit(name, tmp_path, source.contract, reference, LIMITS)
    assert (parity.num_agreeing, parity.num_samples) == (12, 12)
    assert parity.largest_difference < 1e-5


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (torch.zeros(2), ["output"]),
        ((torch.zeros(2), torch.ones(2)), ["output0", "output1"]),
        ([torch.zeros(2), torch.ones(2)], ["output0", "output1"]),
        (Pair(torch.zeros(2), torch.ones(2)), ["first", "second"]),
        ({"a": torch.zeros(2), "b": None, "c": torch.ones(2)}, ["a", "c"]),
    ],
)
def test_structures_are_flattened_and_restored(value: Any, names: list[str]) -> None:
    outputs = flattened(value, "forward")
    assert list(outputs) == names
    again = restored(value, outputs)
    assert type(again) is type(value)
    assert list(flattened(again, "forward")) == names
    if isinstance(value, Mapping):
        assert again["b"] is None


class FromDict(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Any], scale: float = 1.0) -> Tensor:
        output: Tensor = self.layer(batch["x"]) * batch["factor"] * scale
        return output


def test_tensors_in_a_dict_and_plain_arguments_are_taken_as_they_are(tmp_path: Path) -> None:
    x = torch.arange(12.0).view(4, 3)
    module = FromDict().eval()
    call, tensors = Call.read(module, ({"x": x, "factor": 2},), {"scale": 0.5})
    assert (call.inputs, call.mapping, call.constants) == (("x",), "batch", {"batch.factor": 2, "scale": 0.5})
    assert Call.from_dict(vars(call)) == call
    assert list(tensors) == ["x"]
    source, right = source_of(module, [tensors], call=call), module.layer(x).detach().numpy()
    (tmp_path / "model.pt").write_bytes(exporter("torchscript").export(source))
    for run in (eager(source.network), exporter("torchscript").load(tmp_path / "model.pt")):
        np.testing.assert_allclose(run({"x": x.numpy()})["output"], right, rtol=1e-6)


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ({"inputs": {"idss": Input()}}, r"the input 'idss', which is no argument of forward of Texts \(.*:\d+\)"),
        ({"outputs": {"score": Output()}}, r"the output 'score', which .* does not return: it returns scores, words"),
        ({"outputs": {"scores": Output(labels=("a",))}}, r"gives 'scores' 1 labels, but it has the shape \(4, 2\)"),
        ({"result": "score"}, "gives result='score', which is no output: scores, words are"),
        ({"inputs": {"ids": Input(range=(0, 5))}}, r"gives 'ids' the range \(0, 5\), which real samples exceed"),
        ({"inputs": {"ids": {"range": 1}}}, r"describes 'ids' of inputs by a dict: Input\(\.\.\.\) is needed"),
        ({"network": nn.Flatten()}, "takes 2 positional arguments but 3 were given"),
    ],
)
def test_description_that_does_not_fit_is_refused_in_one_sentence(described: dict[str, Any], sentence: str) -> None:
    with pytest.raises((GateFailure, TypeError), match=sentence):
        source_of(Texts(**described), texts(5, 7, 9))


class Odd(pl.LightningModule):
    """Returns what `forward` is given to return."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (lambda x: ["a"] * len(x), "returns a str as 'output0': a tensor is needed"),
        (lambda x: len(x), "returns a int: a tensor, a tuple or a dict of them is needed"),
        (lambda x: {}, "returns nothing: a tensor is needed"),
        (lambda x: {"x": x}, "'x' is the name of an input and of an output: name the output otherwise"),
        (lambda x: x.sum(), r"answers 4 samples with \(\) as 'output': one answer for each sample"),
        (lambda x: x.view(4, -1).to(torch.complex64), "'output' has the type complex64"),
        (lambda x: x[:, :5] + x[:, 5:10], "takes no other size along 'x_1' than that of its samples"),
    ],
)
def test_forward_that_cannot_be_exported_is_refused_in_one_sentence(answer: Any, sentence: str) -> None:
    with pytest.raises(GateFailure, match=sentence):
        source_of(Odd(answer), [{"x": torch.ones(4, 10)}, {"x": torch.ones(4, 10 if "type" in sentence else 11)}])


@pytest.mark.parametrize(
    ("example", "sentence"),
    [
        ({"y": torch.zeros(2, 3)}, r"an example of 'y', which is no parameter of forward of Texts .* takes ids, mask"),
        ({"ids": torch.zeros(2, 3)}, r"does not fit forward of Texts .*missing a required argument: 'mask'"),
        ({"ids": torch.zeros(1, 3), "mask": torch.zeros(1, 3)}, "holds fewer than two samples"),
    ],
)
def test_example_that_does_not_fit_is_refused_in_one_sentence(example: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(GateFailure, match=sentence):
        from_example(Texts(example=example))
    assert from_example(Texts()) is None


def test_synthetic_samples_are_drawn_from_what_is_known_of_an_input() -> None:
    columns = (Column("age"), Column("town", ("Bonn", "Rom")), Column("member", boolean=True))
    inputs = (
        TensorSignature("picture", "uint8", ("batch", 1, 8, 8), (0, 255), mean=(200.0,), std=(10.0,)),
        TensorSignature("scaled", "float32", ("batch", 3), (0, 1)),
        TensorSignature("row", "float32", ("batch", 3), columns=columns, mean=(40.0, 1.5, 0.5), std=(5.0, 0.5, 0.5)),
        TensorSignature("words", "int64", ("batch", "length")),
        TensorSignature("flags", "bool", ("batch", 4)),
        TensorSignature("unknown", "float64", ("batch", 2)),
    )
    real = {
        "picture": np.zeros((8, 1, 8, 8), np.uint8),
        "scaled": np.zeros((8, 3), np.float32),
        "row": np.full((8, 3), np.nan, np.float32),
        "words": np.tile(np.arange(5, 11), (8, 1)),
        "flags": np.zeros((8, 4), bool),
        "unknown": np.full((8, 2), 1e6),
    }
    made = synthetic(Signature(inputs, inputs[:1], 8), real, seed=1)
    assert {name: (array.dtype, array.shape) for name, array in made.items()} == {
        name: (array.dtype, array.shape) for name, array in real.items()
    }
    assert 190 < made["picture"].mean() < 210
    assert made["scaled"].min() >= 0
    assert made["scaled"].max() <= 1
    assert 30 < made["row"][:, 0].mean() < 50
    assert set(made["row"][:, 1]) == {1, 2}
    assert set(made["row"][:, 2]) == {0, 1}
    assert set(made["words"].ravel()) <= set(range(5, 11))
    assert len(set(made["words"].ravel())) > 3
    assert made["unknown"].mean() == 1e6
    text = TensorSignature("text", "string", ("batch",))
    with pytest.raises(UserError, match=r"export.golden=synthetic cannot make text, which 'text' is: leave it out."):
        synthetic(Signature((text,), inputs[:1], 8), {"text": np.array(["a"], object)}, seed=1)
