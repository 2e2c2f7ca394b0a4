"""Signatures of bundles with elliptic curve keys: over the manifest, which holds the hash of every other file.

By model-signing (https://github.com/sigstore/model-transparency). Its own command verifies a bundle as well:

model_signing verify key <bundle>/manifest.json --signature <bundle>/manifest.sig --public-key <public key>
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ..errors import BadBundle, UserError

SIGNATURE = "manifest.sig"
PASSWORD = "SIGNING_PASSWORD"  # an environment variable, since everybody on the machine can see options
NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem"
NEW_PUBLIC_KEY = "openssl ec -in signing.pem -pubout -out signing.pub"


def signer(key: str, option: str) -> Callable[[Path, Path], None]:
    """Returns what writes the signature of its first file to its second one.

    Raises `UserError`, which names the option, for a file that holds no private key.
    """
    config = _with_key(key, option, _signing_config, f"private key of an elliptic curve, as of '{NEW_KEY}'")
    return cast("Callable[[Path, Path], None]", config.sign)


def check_key(key: str, option: str) -> None:
    """Raises `UserError`, which names the option, for a file that holds no public key."""
    _verifier(key, option)


def check_signature(manifest: Path, signature: Path, key: str, option: str = "key") -> None:
    """Raises `BadBundle` unless the owner of the public key signed the manifest as it is."""
    verifier = _verifier(key, option)
    folder = manifest.parent
    if not signature.is_file() or signature.is_symlink():
        raise BadBundle(f"{folder} is not signed, as {option}={key} asks: export it with export.sign=<private key>.")
    try:
        verifier.verify(manifest, signature)
    except Exception as error:  # what a damaged signature leads to is up to its bytes
        if "Key mismatch" in str(error):
            raise BadBundle(f"{folder} was signed with another key than that of {option}={key}.") from error
        raise BadBundle(
            f"{signature.name} in {folder} does not fit {manifest.name}: one of them was changed since it was signed."
        ) from error


def _verifier(key: str, option: str) -> Any:
    return _with_key(key, option, _verifying_config, f"public key of an elliptic curve, as of '{NEW_PUBLIC_KEY}'")


def _with_key(key: str, option: str, configure: Callable[[Path], Any], wanted: str) -> Any:
    if find_spec("model_signing") is None:
        raise UserError(f"{option}={key} needs model-signing: run 'pip install -c constraints.txt --group sign'.")
    path = Path(key).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{option}={key} does not exist: give the file of a key.")
    try:
        return configure(path)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        if "password" in str(error).lower():  # cryptography says whether it is missing, wrong or not needed
            raise UserError(f"{option}={key}: {str(error).rstrip('.')} (environment variable {PASSWORD}).") from error
        raise UserError(f"{option}={key} cannot be used: give the file (PEM) of a {wanted}.") from error


def _signing_config(path: Path) -> Any:
    config = import_module("model_signing.signing").Config()  # here: its import takes a second
    return config.use_elliptic_key_signer(private_key=path, password=os.environ.get(PASSWORD, "").encode() or None)


def _verifying_config(path: Path) -> Any:
    return import_module("model_signing.verifying").Config().use_elliptic_key_verifier(public_key=path)
