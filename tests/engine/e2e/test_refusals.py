"""A user's mistake gets one sentence and exit code 2, without a traceback, and leaves nothing behind."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import HANGS, TWO_PROCESSES, run_command

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine import commands
from {{ cookiecutter.package_name }}.engine.console import broken_pipe_ends_quietly

# What the configuration alone can refuse: answered without importing torch.
FAST = [
    ("train", ["trainer.max_epoch=3"], "'trainer.max_epoch' is no option; did you mean 'trainer.max_epochs'?"),
    ("train", ["trainer=ddp"], "'trainer=ddp' is no option; did you mean 'strategy=ddp'?"),
    ("train", ["trainer.strategy=ddp"], "'strategy' is a group of its own: choose one as 'strategy=...'."),
    ("train", ["trainer.accumulate_grad_batches=2"], "follows from 'data.micro_batch_size': set that one."),
    ("train", ["model=resnet"], "'model=resnet' is no option; choose one of: {{ "mlp" if cookiecutter.data_kind == "tables" else "cnn, mlp, timm" if cookiecutter.vision else "cnn, mlp" }}."),
    ("train", ["logger=null"], "a group cannot be null on the command line: leave it out with '~'"),
    ("train", ["'"], "cannot be read: write an option as name=value"),
    ("export", ["export.opsett=18"], "'export.opsett' is no option; did you mean 'export.opset'?"),
    ("predict", ["input=a.png", "device=tpu"], "device=tpu does not fit: it takes auto or cpu or cuda."),
    ("benchmark", ["bundel=latest"], "'bundel' is no option; did you mean 'bundle'?"),
    ("benchmark", ["bundle=nowhere"], "bundle=nowhere does not exist"),
    ("evaluate", ["ckpt_path=nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ("export", ["formats=[onxx]"], "formats=[onxx] is no format; did you mean 'onnx'?"),
    ("predict", ["input=nowhere.png"], "input=nowhere.png does not exist"),
    ("train", ["weights=nowhere.safetensors"], "weights=nowhere.safetensors does not exist"),
{% if cookiecutter.data_kind == "tables" %}
    ("train", ["data.path=nowhere.csv"], "data.path=nowhere.csv does not exist: give a CSV or Parquet file"),
{% else %}
    ("train", ["data=image_folder", "data.root=nowhere"], "data.root=nowhere does not exist: give a folder"),
    ("search", ["data=image_folder"], "data.root= is needed: give a folder with a folder for each label"),
{% endif %}
    ("verify", ["bundel=latest"], "'bundel' is no option; did you mean 'bundle'?"),
{% if cookiecutter.search %}
    ("search", ["num_trial=3"], "'num_trial' is no option; did you mean 'num_trials'?"),
{% endif %}
    ("train", ["model.net.lr=0.1"], "'model.net.lr' is no option; did you mean 'model.optimizer.lr='?"),
    ("train", ["lr=0.1"], "'lr' is no option; did you mean 'model.optimizer.lr='?"),
    ("train", ["+lr=0.1"], "'lr' is no option; did you mean 'model.optimizer.lr='?"),
    ("train", ["--max_epochs", "1"], "options have no dashes: did you mean 'trainer.max_epochs=1'?"),
{% if cookiecutter.search %}
    ("train", ["hparams_search=optuna"], "did you mean the command 'python -m {{ cookiecutter.package_name }} search'"),
{% endif %}
    ("train", ["logger={{ 'mlflow' if cookiecutter.tracking == 'wandb' else 'wandb' }}"], "is not installed: run 'pip install -c constraints.txt"),
    ("runs", ["compare=[a]"], "compare=['a'] names 1 runs: give two."),
    ("train", ["resume=nowhere"], "resume=nowhere is no run directory: give one"),
    ("train", ["resume=latest"], "resume=latest finds no run under logs/train"),
]
VERBS = ("train",{{ ' "search",' if cookiecutter.search }} "evaluate", "predict", "export", "verify", "benchmark", "runs")
SLOW = [
    ("train", ["strategy=single", "trainer=cpu", "trainer.devices=2"], "strategy=single uses one device"),
    ("train", ["strategy=dp", "trainer=cpu", "trainer.devices=2"], "take strategy=ddp"),
    ("train", ["trainer=gpu", "trainer.devices=512"], "trainer."),
    ("train", ["trainer=cpu", "trainer.limit_train_batches=0"], "limit_train_batches=0 leaves nothing to train"),
    ("train", ["trainer=cpu", "trainer.max_epochs=0"], "trainer.max_epochs=0 leaves nothing to train"),
    ("train", ["strategy=ddp", "trainer=cpu", "trainer.num_nodes=2"], "start the command with 'torchrun --nnodes 2'"),
    ("train", ["+trainer.accumulate_grad_batches=2"], "follows from 'data.micro_batch_size': set that one."),
    ("train", ["trainer.precision=16-mixed", "trainer.gradient_clip_val=1"], "needs model.optimizer.fused=false"),
    ("train", ["data.micro_batch_size=0"], "data.micro_batch_size=0 holds no sample: give 1 or more."),
    ("train", ["data.micro_batch_size=many"], "data.micro_batch_size=many does not fit"),
    ("train", ["data.micro_batch_size=16", "trainer.limit_train_batches=0.5"], "may cut a batch in two"),
    ("train", ["data.micro_batch_size=auto", "trainer.limit_train_batches=0.5"], "may cut a batch in two"),
    ("train", ["strategy=ddp", "strategy.static_graph=true", "data.micro_batch_size=16"], "strategy.static_graph=true"),
    ("train", ["strategy=ddp", "strategy.compression=powersgd", "trainer.precision=16-mixed"], "keeps an overflow"),
    ("train", ["strategy=dp", "trainer.sync_batchnorm=true"], "trainer.sync_batchnorm=true is for several processes"),
    ("train", ["ema_decay=0.9", "trainer.precision=bf16-true"], "ema_decay changes weights by less than trainer."),
    ("train", ["ema_decay=1"], "ema_decay=1 is out of range: give more than 0, and less than 1, or null."),
    ("train", ["strategy=fsdp", "trainer.precision=16-mixed"], "scales gradients, which strategy=fsdp cannot"),
    ("train", ["strategy=fsdp", "data.micro_batch_size=auto"], "give a number"),
    ("train", ["strategy=fsdp", "strategy.min_num_weights=0"], "strategy.min_num_weights=0 is out of range"),
    ("train", ["+callbacks.best.save_weights_only=true"], "callbacks.best.save_weights_only=true leaves out"),
    ("train", ["strategy=dp", "compile=true"], "compile=true cannot follow strategy=dp"),
    ("train", ["strategy=fsdp", "strategy.cpu_offload=2"], "strategy.cpu_offload=2 does not fit"),
    ("train", ["strategy=fsdp", "strategy.layer_classes=Linear"], "strategy.layer_classes=Linear does not fit"),
    ("train", ["trainer=cpu", "trainer.precision=16-mixed"], "take bf16-mixed."),
    ("train", ["strategy=ddp", "strategy.compression=zip"], "it takes none or fp16 or bf16 or powersgd"),
    ("train", ["strategy=ddp", "trainer=cpu", "strategy.compression=bf16"], "strategy.compression=bf16 needs GPUs"),
    ("train", ["strategy=ddp", "strategy.bucket_cap_mb=0"], "strategy.bucket_cap_mb=0 is out of range"),
    ("train", ["lr_scaling=cubic"], "lr_scaling=cubic does not fit: it takes none or linear or sqrt."),
    ("train", ["base_batch_size=0"], "base_batch_size=0 holds no sample"),
    ("train", ["paths.log_dir=truncated.ckpt"], "the run directory truncated.ckpt/train/runs/"),
    ("train", ["~model"], {{ '"model cannot be built"' if cookiecutter.data_kind == "tables" else '"\'model\' is needed"' }}),
    ("train", ["+trainer.strategy=ddp"], "'trainer.strategy' is set by the project itself"),
    ("train", ["strategy=ddp", "strategy.static_graph=maybe"], "it takes true or false"),
    ("train", ["model.net.{{ "widths=[0]" if cookiecutter.data_kind == "tables" else "num_groups=0" }}"], "model cannot be built"),
    ("train", ["model.net._target_=torch.hub.load"], "could run foreign code"),
    ("train", ["freeze=${data.past}"], "'freeze' takes the value of 'data.past', which is no option here"),
    ("train", ["seed=abc"], "seed=abc does not fit: it takes a whole number."),
    ("train", ["data.batch_size=abc"], "data.batch_size=abc does not fit: it takes a whole number."),
    ("train", ["model.optimizer.lr=-1"], "Invalid learning rate: -1"),
    ("train", ["ckpt_path=nowhere.ckpt"], "nowhere.ckpt does not exist"),
    ("train", ["weights=nowhere.ckpt"], "weights=nowhere.ckpt does not exist"),
    ("train", ["weights=3"], "weights=3 does not fit: it takes text or null."),
    ("train", ["weights=truncated.ckpt"], "weights=truncated.ckpt cannot be read"),
    ("train", ["weights=truncated.ckpt", "ckpt_path=truncated.ckpt"], "are two starts of a run"),
    ("train", ["pretrained_lr_factor=0.1"], "is for pretrained weights: give weights=<file>."),
    ("train", ["pretrained_lr_factor=2"], "pretrained_lr_factor=2 is out of range: give more than 0, and at most 1."),
    ("train", ["warmup_steps=-1"], "warmup_steps=-1 is out of range: give 0 (none) or more."),
    ("train", ["rehearse_export=true"], "rehearse_export=True does not fit: it takes warn or require or "),
    ("train", ["freeze=net.2.*"], "freeze=net.2.* fits no weight: there are net.1.{{ "layers.0" if cookiecutter.data_kind == "tables" else "features.0" }}.weight"),
    ("train", ["freeze=[net.1.*]"], "freezes every weight"),
    ("train", ["model.class_weights=[1,2,3]"], "has 3 numbers for {{ 2 if cookiecutter.data_kind == "tables" else 10 }} labels"),
    ("train", ["model.class_weights=evenly"], "it takes balanced or a list or null"),
    ("evaluate", ["ckpt_path=null"], "ckpt_path=None does not fit"),
    ("evaluate", [], "finds no trained run"),
    ("evaluate", ["ckpt_path=."], "is a folder: give the file in it"),
    ("export", ["model=mlp"], "'model' is no group of this command"),
    ("export", [], "finds no trained run"),
    ("export", ["ckpt_path=truncated.ckpt"], "cannot be read"),
    ("export", ["formats=3"], "formats=3 does not fit"),
    ("export", ["formats=[]"], "formats=[] exports nothing"),
    ("export", ["export=null"], "'export' is needed"),
    ("export", ["~export"], "'export' is needed"),
    ("export", ["export.name={a:1}"], "export.name={'a': 1} does not fit: it takes text"),
    ("predict", ["input=x", "batch_size={a:1}"], "batch_size={'a': 1} does not fit: it takes a whole number"),
    ("export", ["export.max_batch_size=1000000000000"], "export.max_batch_size=1000000000000 is out of range"),
    ("export", ["export.tolerance=-1"], "export.tolerance=-1 is out of range"),
    ("export", ["export.tolerance=nan"], "export.tolerance=nan is out of range"),
    ("export", ["export.name=../up"], "export.name=../up is no name for a model"),
    ("export", ["export.name='a b'"], "export.name=a b is no name for a model"),
    ("export", ["export.max_batch_size=0"], "export.max_batch_size=0 is out of range"),
    ("export", ["formats=[torchscript]", "export.opset=20"], "export.opset=20 is for onnx, onnx_int8, onnx_fp16, not"),
    ("export", ["export.num_calibration_samples=8"], "export.num_calibration_samples=8 is for onnx_int8, not for"),
    ("export", ["formats=[onnx_int8]", "export.num_calibration_samples=0"], "=0 is too few"),
    ("export", ["formats=[onnx_int8]", "export.calibration=mean"], "it takes minmax or entropy or percentile"),
    ("export", ["export.max_metric_loss=2"], "export.max_metric_loss=2 is out of range"),
    ("predict", [], "input= is needed: give a file, a folder, a list as [a,b], or a pattern"),
    ("predict", ["input=truncated.ckpt"], "finds no trained run"),
    ("predict", ["input=truncated.ckpt", "ckpt_path=truncated.ckpt"], "cannot be read"),
    ("predict", ["input=truncated.ckpt", "device=cuda", "ckpt_path=x.ckpt", "bundle=x"], "are two models"),
    ("predict", ["input=truncated.ckpt", "bundle=latest"], "bundle=latest finds none under"),
    ("predict", ["input=truncated.ckpt", "output=a.txt"], "output=a.txt has no format"),
    ("predict", ["input=truncated.ckpt", "output=folder.csv"], "output=folder.csv is a folder"),
    ("predict", ["input=truncated.ckpt", "batch_size=0"], "batch_size=0 is too small: give 1 or more."),
    ("benchmark", ["bundle=latest"], "bundle=latest finds none under"),
    ("benchmark", ["devices=[0]"], "devices=[0] are numbers of devices: give 1 or more."),
    ("benchmark", ["strategies=[]"], "strategies=[] measures nothing"),
    ("benchmark", ["strategies=[zero]"], "strategies=['zero'] does not fit"),
    ("benchmark", ["strategy=ddp"], "strategy is what benchmark changes: give strategies=[single,ddp]"),
    ("benchmark", ["resume=latest"], "resume=latest is for a training"),
    ("benchmark", ["trust=true"], "trust, sign and batch_sizes are for the formats of a bundle: add bundle=latest."),
    ("benchmark", ["bundle=latest", "devices=[2]"], "devices is for training"),
    ("benchmark", ["trainer.devices=2"], "trainer.devices is what benchmark changes: give devices=[1,2]"),
    ("benchmark", ["num_threads=0"], "num_threads=0 is too small: give 1 or more."),
    ("benchmark", ["num_rounds=0"], "num_rounds=0 is too small: give 1 or more."),
    ("benchmark", ["seconds=0"], "seconds=0 is out of range: give more than 0"),
    ("benchmark", ["batch_sizes=[]"], "batch_sizes=[] measures nothing"),
    ("benchmark", ["batch_sizes=[a]"], "batch_sizes="),
    ("verify", [], "bundle=latest finds none under"),
    ("verify", ["bundle=nowhere"], "bundle=nowhere does not exist"),
    ("verify", ["bundle=."], "is no bundle: it has no manifest.json"),
    ("verify", ["trust=perhaps"], "trust=perhaps does not fit: it takes true or false"),
]


def only_line(refused: subprocess.CompletedProcess[str]) -> str:
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_mistake_gets_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """As it is typed; the other mistakes are tried in processes that do less."""
    verb, options, sentence = SLOW[0]
    assert sentence in only_line(run_command(verb, *options, cwd=tmp_path, check=False))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "export"])
def test_file_of_a_command_says_how_to_start_it(verb: str) -> None:
    file = Path(str(package.__file__)).with_name(f"{verb}.py")
    refused = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=HANGS, check=False)
    sentence = f"error: start the module, not its file: python -m {package.__name__} {verb}"
    assert (refused.returncode, refused.stderr.splitlines()) == (1, [sentence])


@pytest.mark.parametrize("option", ["hydra.run.dir=keep", pytest.param("hydra.sweep.dir=keep", marks=pytest.mark.slow)])
def test_refused_command_leaves_a_folder_that_was_given(option: str, tmp_path: Path) -> None:
    """It may hold an earlier run, of which nothing but the log and Hydra's notes can be told."""
    sweep = ["-m"] if "sweep" in option else []
    folder = tmp_path / "keep/0" if sweep else tmp_path / "keep"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "predict.log").write_text("earlier\n", encoding="utf-8")
    refused = run_command("predict", *sweep, option, "input=nowhere", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert (folder / "predict.log").read_text(encoding="utf-8").startswith("earlier\n")
    assert (folder / ".hydra").is_dir()


@pytest.fixture
def process_kept() -> Iterator[None]:
    """What a command changes in its process: where logs go, and what SIGTERM does."""
    root, before = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, level = list(root.handlers), root.level
    yield
    signal.signal(signal.SIGTERM, before)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("process_kept")
@pytest.mark.parametrize(("verb", "options", "sentence"), SLOW)
def test_mistake_that_needs_torch_to_be_seen_is_told_alike(
    verb: str,
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In this process, because a new one would first import torch for seconds."""
    (tmp_path / "truncated.ckpt").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [package.__name__, verb, *options])
    with pytest.raises(SystemExit) as ended:
        commands.main(("train", "evaluate", "predict", "export"))
    refused = subprocess.CompletedProcess(options, ended.value.code, stderr=capfd.readouterr().err)  # type: ignore[arg-type]
    assert sentence in only_line(refused)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["truncated.ckpt"]
    assert not (tmp_path / "artifacts").exists()


def test_figure_that_is_monitored_and_never_logged_is_named_and_the_last_checkpoint_is_the_best(tmp_path: Path) -> None:
    monitored = [f"callbacks.{name}.monitor=val/nothing" for name in ("best", "early_stopping")]
    printed = run_command("train", "trainer=cpu", "trainer.max_epochs=2", *monitored, cwd=tmp_path).stdout
    (line,) = (line for line in printed.splitlines() if "which is monitored" in line)
    assert line.startswith("warning     the model logs ")
    assert "and not val/nothing, which is monitored: the best checkpoint is the last one, and the training" in line
    assert "val/loss" in line.split(" and not ")[0]
    (best,) = tmp_path.glob("logs/train/runs/*/checkpoints/best.ckpt")
    assert torch.load(best, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("verb", "options", "sentence"),
    [*FAST, *((verb, ["--help"], "") for verb in VERBS)],
    ids=lambda value: str(value)[:60],
)
def test_answered_without_torch_in_one_sentence(verb: str, options: list[str], sentence: str, tmp_path: Path) -> None:
    code = (
        f"import sys; from {package.__name__}.engine.commands import main\n"
        "try:\n    main(('train', 'evaluate', 'predict', 'export'))\n"
        "finally:\n    assert not sys.modules.keys() & {'torch', 'lightning'}, 'torch was imported'\n"
    )
    command = [sys.executable, "-c", code, verb, *options]
    answered = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if sentence:
        assert sentence in only_line(answered)
    else:
        assert answered.returncode == 0, answered.stderr
        assert "torch was imported" not in answered.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "options", [("--help",), ("train", "--help"), ("train", "trainer=cpu"), ("train", "trainer=cpu", *TWO_PROCESSES)]
)
def test_output_that_nobody_reads_ends_a_command_in_silence(options: tuple[str, ...], tmp_path: Path) -> None:
    """As in `--help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", package.__name__, *options]
    ended = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert ended.returncode == 141
    assert ended.stderr == ("error: rank 0 ended with exit code 141.\n" if TWO_PROCESSES[0] in options else "")


def test_broken_pipe_that_is_not_the_output_is_an_error_like_any_other() -> None:
    with pytest.raises(BrokenPipeError, match="the owner's socket"), broken_pipe_ends_quietly():
        raise BrokenPipeError("the owner's socket")


@pytest.mark.parametrize("opset", [3, 99])
def test_opset_out_of_range_is_refused(opset: int, best_checkpoint: Path, tmp_path: Path) -> None:
    refused = run_command("export", f"ckpt_path={best_checkpoint}", f"export.opset={opset}", cwd=tmp_path, check=False)
    assert f"export.opset={opset} is out of range" in only_line(refused)
    assert not (tmp_path / "artifacts").exists()


NETWORK = """
from PACKAGE.export import main
from PACKAGE.models.{{ "tabular import TabularMLP" if cookiecutter.data_kind == "tables" else "cnn import CNN" }} as Network

whole = Network.forward
Network.forward = lambda self, x: whole(self, x if x.isnan().sum() >= 0 else -x)
main()
"""


def test_network_that_a_format_cannot_express_is_refused(best_checkpoint: Path, tmp_path: Path) -> None:
    code = NETWORK.replace("PACKAGE", package.__name__)
    command = [sys.executable, "-c", code, f"ckpt_path={best_checkpoint}", "formats=onnx"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused.stderr
    assert "error: format 'onnx' cannot express this network" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "artifacts").exists()
