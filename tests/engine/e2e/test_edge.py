"""The commands of docs/edge.md, word for word: run inside a generated project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

PROJECT = Path(__file__).parents[2]
BUNDLE = Path("artifacts/digit_classifier/1")
EXECUTORCH = os.environ.get("EXECUTORCH_PYTHON")
FILES_OF_ORT = ("model", "model.int8")

Outputs = dict[str, npt.NDArray[np.float32]]


def commands_of(heading: str) -> list[str]:
    """The blocks that are to be typed under a heading of the page."""
    page = (PROJECT / "docs/edge.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^{heading}\n(.*?)(?=^#+ |\Z)", page, re.DOTALL | re.MULTILINE)
    blocks: list[str] = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return blocks


def type_in(command: str, folder: Path) -> None:
    """As with the environment of these tests activated."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        ["bash", "-euc", command],
        cwd=folder,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def golden_of(folder: Path) -> Outputs:
    with np.load(folder / BUNDLE / "golden.npz") as golden:
        return dict(golden)


@pytest.fixture(scope="module")
def exported(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and the bundle that the page's own command made of it."""
    folder = tmp_path_factory.mktemp("edge")
    shutil.copytree(workplace / "logs/train", folder / "logs/train")
    (export,) = commands_of("# Phones and small devices")
    type_in(export, folder)
    return folder


def test_onnx_runtime_mobile_gives_the_golden_answers(exported: Path) -> None:
    (convert,) = commands_of("## ONNX Runtime")
    type_in(convert, exported)
    golden = golden_of(exported)
    answers = {name: answers_of_ort(exported / f"build/edge/{name}.ort", golden["x"]) for name in FILES_OF_ORT}
    for key in ("logits", "probabilities"):
        np.testing.assert_allclose(answers["model"][key], golden[key], rtol=0, atol=1e-4)
    # In 8 bits: what the samples are called, and how surely.
    assert (answers["model.int8"]["logits"].argmax(axis=1) == golden["logits"].argmax(axis=1)).all()
    np.testing.assert_allclose(answers["model.int8"]["probabilities"], golden["probabilities"], rtol=0, atol=0.1)
    operators = (exported / "build/edge/model.int8.required_operators.config").read_text(encoding="utf-8")
    assert "QLinearConv" in operators, "the convolutions compute in 8 bits"


def answers_of_ort(path: Path, inputs: npt.NDArray[np.uint8]) -> Outputs:
    """All samples at once and one at a time agree."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = ["logits", "probabilities"]
    found = dict(zip(names, session.run(names, {"x": inputs}), strict=True))
    single = [session.run(names, {"x": inputs[index : index + 1]}) for index in range(len(inputs))]
    for position, name in enumerate(names):
        each = np.concatenate([outputs[position] for outputs in single])
        np.testing.assert_allclose(each, found[name], rtol=0, atol=1e-4)
    return found


# The environment of ExecuTorch does not have the project in it, and needs none.
RUN_PTE = """
import sys

import numpy as np
import torch
from executorch.runtime import Runtime

program, golden, answers = sys.argv[1:]
method = Runtime.get().load_program(program).load_method("forward")
# The outputs lie in memory that the next call writes to.
outputs = [
    [output.numpy().copy() for output in method.execute([torch.from_numpy(sample[None].copy())])]
    for sample in np.load(golden)["x"]
]
logits, probabilities = (np.concatenate(parts) for parts in zip(*outputs))
np.savez(answers, logits=logits, probabilities=probabilities)
"""


@pytest.mark.skipif(EXECUTORCH is None, reason="not run: EXECUTORCH_PYTHON is not set (make session NAME=executorch)")
def test_executorch_gives_the_golden_answers(exported: Path) -> None:
    install, lower = commands_of("## ExecuTorch")
    # The environment is there already, with what the page installs.
    assert install.startswith("python -m venv build/executorch\n")
    assert_installed(install.splitlines()[1])
    (exported / "build").mkdir(exist_ok=True)
    (exported / "build/executorch").symlink_to(Path(str(EXECUTORCH)).absolute().parents[1])
    type_in(lower, exported)
    (exported / "run_pte.py").write_text(RUN_PTE, encoding="utf-8")
    type_in(f"build/executorch/bin/python run_pte.py build/edge/model.pte {BUNDLE}/golden.npz answers.npz", exported)
    golden = golden_of(exported)
    with np.load(exported / "answers.npz") as answers:
        for key in ("logits", "probabilities"):
            np.testing.assert_allclose(answers[key], golden[key], rtol=0, atol=1e-4)


def assert_installed(command: str) -> None:
    """A version that is said without its build, as 2.13.0 of 2.13.0+cpu, is that version."""
    wanted = dict(re.findall(r"([\w-]+)==([\d.]+)", command))
    assert set(wanted) == {"torch", "torchao", "executorch"}
    script = f"from importlib.metadata import version as v; print(*(v(name) for name in {list(wanted)}))"
    found = subprocess.run([str(EXECUTORCH), "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [version.split("+")[0] for version in found.stdout.split()] == list(wanted.values())
