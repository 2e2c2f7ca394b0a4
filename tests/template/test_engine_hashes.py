"""The engine's version and the hashes of its files are up to date, and hold in every project."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import QUESTIONS, TEMPLATE, bake_into

sys.path.insert(0, str(TEMPLATE / "tools"))
import hashes


def test_hashes_and_version_are_up_to_date() -> None:
    files = {hashes.ENGINE / "VERSION": hashes.version(), hashes.ENGINE / "engine.sha256": hashes.hashes()}
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, "run python tools/hashes.py"
    assert (hashes.ENGINE / "VERSION").read_text(encoding="utf-8") == f"{QUESTIONS['_template_version']}\n"


@pytest.mark.parametrize("answers", [{"data_kind": "tables", "serving": False}, {"vision": True}], ids=str)
def test_hashes_hold_in_a_project(tmp_path: Path, answers: dict[str, object]) -> None:
    engine = next(bake_into(tmp_path, **answers).glob("src/*/engine"))
    listed = re.findall(r"^([0-9a-f]{64})  (.+)$", (engine / "engine.sha256").read_text(encoding="utf-8"), re.MULTILINE)
    found = {path.relative_to(engine).as_posix() for path in engine.rglob("*") if path.is_file()}
    assert {path for _, path in listed} == found - {"engine.sha256"}
    assert [path for _, path in listed] == sorted(path for _, path in listed)
    for digest, path in listed:
        assert hashlib.sha256((engine / path).read_bytes()).hexdigest() == digest, path
    assert hashes.doctor.engine_edits(engine) == {}


def test_doctor_tells_edits_of_the_engine_from_features_that_are_absent(tmp_path: Path) -> None:
    engine = shutil.copytree(hashes.ENGINE, tmp_path / "engine")
    shutil.rmtree(engine / "search")
    assert hashes.doctor.engine(engine).found == f"{QUESTIONS['_template_version']}, as made"
    (engine / "errors.py").write_text("", encoding="utf-8")
    (engine / "spec.py").unlink()
    (engine / "data/mine.py").touch()
    (engine / "VERSION").write_bytes((engine / "VERSION").read_bytes().replace(b"\n", b"\r\n"))
    assert hashes.doctor.engine_edits(engine) == {
        "data/mine.py": "added",
        "errors.py": "changed",
        "spec.py": "missing",
    }
    finding = hashes.doctor.engine(engine)
    assert finding.remedy
    assert not finding.missing


def test_doctor_tells_an_engine_that_is_older_than_the_template(tmp_path: Path) -> None:
    record = tmp_path / ".cruft.json"

    def remedy(recorded: str, at_template: str) -> str:
        (tmp_path / "cookiecutter.json").write_text(json.dumps({"_template_version": at_template}), encoding="utf-8")
        context = {"cookiecutter": {"_template_version": recorded}}
        record.write_text(json.dumps({"template": str(tmp_path), "context": context}), encoding="utf-8")
        (finding,) = hashes.doctor.template(tmp_path, hashes.ENGINE)
        assert not finding.missing
        return finding.remedy

    version = QUESTIONS["_template_version"]
    assert remedy(version, version) == ""
    assert remedy("99.0.0", version) == remedy(version, "99.0.0") == "the engine is older: make update"
    record.write_text("<<<<<<< HEAD", encoding="utf-8")
    (finding,) = hashes.doctor.template(tmp_path, hashes.ENGINE)
    assert "damaged" in finding.found
    record.unlink()
    assert hashes.doctor.template(tmp_path, hashes.ENGINE) == []
