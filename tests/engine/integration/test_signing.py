"""Signatures of bundles: who can make them, and what a changed one leads to."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Keys
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from {{ cookiecutter.package_name }}.engine.errors import UserError
from {{ cookiecutter.package_name }}.engine.export.bundle import add_to
from {{ cookiecutter.package_name }}.engine.inference.runtime import Bundle, digest, read_manifest
from {{ cookiecutter.package_name }}.engine.inference.signing import PASSWORD, check_key, signer

Change = Callable[[Path], object]


@pytest.fixture
def signed(bundle: Path, keys: Keys, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path / "1"))
    signer(str(keys.private), "export.sign")(folder / "manifest.json", folder / "manifest.sig")
    return folder


def test_signed_bundle_is_loaded_with_the_public_key_and_without_one(signed: Path, keys: Keys) -> None:
    Bundle(signed)
    Bundle(signed, key=str(keys.public))


def test_command_of_model_signing_agrees(signed: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", "manifest.json"]
    files = ["--signature", "manifest.sig", "--public_key", str(keys.public)]
    subprocess.run([*command, *files], cwd=signed, check=True)
    (signed / "manifest.json").write_text("{}", encoding="utf-8")
    assert subprocess.run([*command, *files], cwd=signed, capture_output=True, check=False).returncode != 0


def forge(folder: Path) -> None:
    """Changes the model and its hash in the manifest, which only a signature shows."""
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    manifest = read_manifest(folder)
    manifest["files"]["model.onnx"] = {
        "sha256": digest(folder / "model.onnx"),
        "bytes": (folder / "model.onnx").stat().st_size,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def as_link(folder: Path) -> None:
    (folder / "manifest.sig").rename(folder.parent / "elsewhere.sig")
    (folder / "manifest.sig").symlink_to(folder.parent / "elsewhere.sig")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (forge, "manifest.sig in .* does not fit manifest.json: one of them was changed since it was signed"),
        (lambda folder: (folder / "manifest.sig").unlink(), "is not signed, as key=.* asks: export it with export.s"),
        (as_link, "is not signed"),
        (lambda folder: (folder / "manifest.sig").write_text("{}"), "manifest.sig in .* does not fit"),
        (lambda folder: (folder / "manifest.sig").write_bytes(b"\xff"), "manifest.sig in .* does not fit"),
        (lambda folder: (folder / "golden.npz").write_bytes(b"PK"), "golden.npz in .* was changed after its export"),
    ],
    ids=["forged", "unsigned", "link", "empty", "no text", "file"],
)
def test_changed_bundle_is_refused(signed: Path, keys: Keys, change: Change, sentence: str) -> None:
    change(signed)
    with pytest.raises(UserError, match=sentence) as refused:
        Bundle(signed, key=str(keys.public))
    assert refused.value.exit_code == 1


def test_signature_of_somebody_else_is_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(UserError, match="was signed with another key than that of key=") as refused:
        Bundle(signed, key=str(keys.other_public))
    assert refused.value.exit_code == 1


def test_signature_of_another_bundle_is_refused(signed: Path, bundle: Path, keys: Keys, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "2"))
    manifest = {**read_manifest(other), "version": 2}
    (other / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copy(signed / "manifest.sig", other)
    with pytest.raises(UserError, match=r"does not fit manifest\.json"):
        Bundle(other, key=str(keys.public))


def test_bundle_that_gets_figures_is_signed_again(signed: Path, keys: Keys) -> None:
    def write(made: Path) -> None:
        (made / "figures.json").write_text("{}", encoding="utf-8")

    add_to(signed, read_manifest(signed), write)
    with pytest.raises(UserError, match=r"does not fit manifest\.json"):
        Bundle(signed, key=str(keys.public))
    add_to(signed, read_manifest(signed), write, signer(str(keys.private), "sign"))
    Bundle(signed, key=str(keys.public))
    assert "manifest.sig" not in read_manifest(signed)["files"]


def test_key_with_a_password_is_read_with_it(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.pem"
    key, encryption = ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"open sesame")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    with pytest.raises(UserError, match=r"Password was not given .* \(environment variable SIGNING_PASSWORD\)"):
        signer(str(path), "export.sign")
    monkeypatch.setenv(PASSWORD, "close sesame")
    with pytest.raises(UserError, match="Incorrect password"):
        signer(str(path), "export.sign")
    with pytest.raises(UserError, match="Password was given but private key is not encrypted"):
        signer(str(keys.private), "export.sign")
    monkeypatch.setenv(PASSWORD, "open sesame")
    signer(str(path), "export.sign")


def test_file_that_holds_no_key_is_refused(keys: Keys, tmp_path: Path) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "rsa.pem").write_bytes(rsa_key)
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    for path in (tmp_path / "rsa.pem", tmp_path / "notes.txt", keys.public):
        with pytest.raises(UserError, match=r"^export.sign=.* cannot be used: give the file .* of a private key"):
            signer(str(path), "export.sign")
    for path in (tmp_path / "rsa.pem", tmp_path / "notes.txt", keys.private):
        with pytest.raises(UserError, match=r"^key=.* cannot be used: give the file .* of a public key"):
            check_key(str(path), "key")
    for path in (tmp_path, tmp_path / "nowhere.pem"):
        with pytest.raises(UserError, match=r"^key=.* does not exist: give the file of a key"):
            check_key(str(path), "key")


def test_package_that_is_not_installed_is_named_with_its_command(bundle: Path, keys: Keys) -> None:
    code = (
        "import sys; sys.modules['model_signing'] = None\n"  # as where it is not installed
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'model_signing' else find(name, *rest)\n"
        "sys.argv.insert(1, 'verify')\n"
        "from {{ cookiecutter.package_name }}.engine.commands import main; main(())"
    )
    command = [sys.executable, "-c", code, f"bundle={bundle}", f"key={keys.public}"]
    refused = subprocess.run(command, cwd=keys.public.parent, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("needs model-signing: run 'pip install -c constraints.txt --group sign'.\n")
{% if cookiecutter.serving %}


def test_server_serves_only_what_the_key_signed(bundle: Path, signed: Path, keys: Keys, tmp_path: Path) -> None:
    from server import serving

    name_dir = tmp_path / "artifacts"
    name_dir.mkdir()
    signed.rename(name_dir / "1")
    shutil.copytree(bundle, name_dir / "2")
    with serving(name_dir, f"key={keys.public}") as server:
        assert "is not signed, as key=" in server.wait_for("left out version 2")
        assert server.version() == "1"
    for folder, key, exit_code, sentence in (
        (name_dir / "2", keys.public, 1, "is not signed"),
        (name_dir / "1", keys.other_public, 1, "was signed with another key"),
        (name_dir, keys.private, 2, "cannot be used: give the file (PEM) of a public key"),
    ):
        command = [sys.executable, "-m", "{{ cookiecutter.package_name }}", "serve", f"bundle={folder}", f"key={key}", "port=0"]
        refused = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert refused.returncode == exit_code, refused.stderr
        (line,) = refused.stderr.splitlines()
        assert sentence in line
{% endif %}
