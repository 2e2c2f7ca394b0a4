"""Writes small files in the form that torchvision downloads: scikit-learn's digits as MNIST and as CIFAR-10."""

import functools
import gzip
import hashlib
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST

Array = npt.NDArray[np.uint8]
NUM_TEST = 100


def digits(num_samples: int, side: int) -> tuple[Array, Array]:
    """Pictures `(N, side, side)` from 0 to 255, and labels `(N,)`."""
    found = load_digits()
    images = (found.images[:num_samples] * (255 / 16)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((side, side))) for image in images]
    return np.stack(resized), found.target[:num_samples].astype(np.uint8)


def idx(values: Array) -> bytes:
    """A file in MNIST's form: the type (8: uint8), the number of axes, their lengths, the values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_mnist(root: Path, num_samples: int = 400) -> Path:
    """Returns the folder of the four files; the last `NUM_TEST` samples are the test split."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    pictures, labels = digits(num_samples, 28)
    for split, rows in (("train", slice(None, -NUM_TEST)), ("t10k", slice(-NUM_TEST, None))):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(pictures[rows]))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))
    return folder


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves the folder's files, and yields the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SilentHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def offer_mnist(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the files, and makes torchvision download them with their own checksums."""
    resources = []
    write_mnist(folder)
    for file in sorted((folder / "MNIST/raw").iterdir()):
        packed = gzip.compress(file.read_bytes())
        (folder / f"{file.name}.gz").write_bytes(packed)
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", resources)


def offer_cifar10(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Array, list[int]]:
    """Likewise, one archive; returns pictures `(N, 3, 32, 32)` and labels, of which the last 100 are the test split."""
    grey, labels = digits(400, 32)
    pictures = np.stack([grey, 255 - grey, grey // 2], axis=1)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    rows = [*np.split(np.arange(300), 5), np.arange(300, 400)]
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    for name, part in zip(names, rows, strict=True):
        contents = {"data": pictures[part].reshape(len(part), -1), "labels": labels[part].tolist()}
        (batches / name).write_bytes(pickle.dumps(contents, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"digit {n}" for n in range(10)]}, protocol=2))
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        archive.add(batches, CIFAR10.base_folder)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    listed = [[name, md5(batches / name)] for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "url", f"{address}{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(folder / CIFAR10.filename))
    return pictures, labels.tolist()
