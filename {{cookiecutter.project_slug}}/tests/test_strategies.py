"""The strategy changes the speed, never the result: real processes, in float64."""

from pathlib import Path

import pytest
import torch
from conftest import Workplace

TWO_PROCESSES = ("strategy=ddp", "trainer.devices=2")
EXACT = ("trainer.precision=64-true", "trainer.sync_batchnorm=true", "test=false")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def ddp_run(ddp: Workplace, needed: dict[str, list[str]]) -> Path:
    return ddp.train(needed, *TWO_PROCESSES, *EXACT)


def last_checkpoint(run_dir: Path) -> dict[str, object]:
    return torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)


def test_ddp_ends_with_the_weights_of_single(ddp_run: Path, needed: dict[str, list[str]], tmp_path: Path) -> None:
    single = Workplace(tmp_path).train(needed, *EXACT)
    expected, found = (last_checkpoint(run_dir)["state_dict"] for run_dir in (single, ddp_run))
    assert list(found) == list(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-10)


def test_ddp_resumes_in_its_run_directory(ddp: Workplace, ddp_run: Path) -> None:
    before = last_checkpoint(ddp_run)
    ddp.run("train", f"resume={ddp_run}", "trainer.max_epochs=2")
    after = last_checkpoint(ddp_run)
    assert ddp.run_dirs("train") == [ddp_run]
    assert (before["epoch"], after["epoch"]) == (0, 1)
    assert after["global_step"] == 2 * before["global_step"]
