"""Starts a server in a separate process, for the tests that send requests to it."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import {{ cookiecutter.package_name }} as package

NAME = package.__name__
INFER = f"/v2/models/{NAME}/infer"


class Server:
    """A running server: its process, its port and its output."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process, self.output = process, output
        self.port = int(self.wait_for("serving ").rpartition(":")[2])

    def lines(self) -> list[dict[str, Any]]:
        """Returns the lines of the log, without one that is still being written."""
        complete, _, _ = self.output.read_text(encoding="utf-8").rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    def wait_for(self, start: str) -> str:
        """Waits for a message that starts with these words, and returns the first one."""
        end = time.monotonic() + 30
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.lines():
                if line.get("message", "").startswith(start):
                    return str(line["message"])
            time.sleep(0.01)
        raise AssertionError((self.process.poll(), self.output.read_text(encoding="utf-8")))

    def requests(self, last: str) -> list[dict[str, Any]]:
        """Returns the lines of requests, once that of the id `last` is there: a line comes after its answer."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            found = [line for line in self.lines() if "request_id" in line]
            if found and found[-1]["request_id"] == last:
                return found
            time.sleep(0.01)
        raise AssertionError(self.output.read_text(encoding="utf-8"))

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def error(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        status, _, answer = self.ask(method, path, body, **headers)
        (sentence,) = json.loads(answer).values()
        return status, str(sentence)

    def metrics(self) -> dict[str, float]:
        """Returns the values by name and labels, as `/metrics` writes them."""
        status, _, text = self.ask("GET", "/metrics")
        assert status == 200
        lines = [line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def version(self) -> str:
        return str(json.loads(self.ask("GET", f"/v2/models/{NAME}")[2])["versions"][0])


@contextmanager
def serving(bundle: Path, *options: str, **environment: str) -> Iterator[Server]:
    output = bundle.parents[1] / f"server-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", NAME, "serve", f"bundle={bundle}", "port=0", *options]
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=bundle.parent, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield Server(process, output)
    finally:
        process.kill()
        process.wait()


def request(inputs: npt.NDArray[Any], **changed: Any) -> bytes:
    tensor = {"name": "x", "datatype": DATATYPE, "shape": list(inputs.shape), "data": inputs.tolist(), **changed}
    return json.dumps({"inputs": [tensor]}).encode()


def series(metric: str, **labels: str) -> str:
    """Returns the name with its labels, as `/metrics` writes it."""
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


{% if cookiecutter.data_kind == "images" %}
ONE, DATATYPE = np.zeros((1, 1, 8, 8), np.uint8), "UINT8"
{% else %}
ONE, DATATYPE = np.zeros((1, 30), np.float32), "FP32"
{% endif %}
