"""Processes that take turns: one trains while the others wait, so that what slows the machine slows them all."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import IO, Any

from ..config.command_line import Config
from ..errors import UserError


class CaseFailure(UserError):
    """What was to be measured has ended by itself; its last words say why."""


class Player:
    """In a process that is measured: waits for its turns and tells what they took."""

    def __init__(self, address: str, token: str) -> None:
        host, port = address.rsplit(":", 1)
        self.file = socket.create_connection((host, int(port))).makefile("rw", encoding="utf-8")
        self.tell(token=token)

    def wait(self) -> None:
        if not self.file.readline():
            raise SystemExit("the benchmark has ended")

    def tell(self, **figures: Any) -> None:
        print(json.dumps(figures), file=self.file, flush=True)


class Case:
    """One or several processes that train the same model together, for a `with` block: at its end there is none.

    Runs `python -m <package>.speed` with the configuration on its standard input. Memory is given back to the system as
    late as can be: glibc would ask for it anew in every step of some networks.
    """

    def __init__(self, config: Config, num_ranks: int, **settings: Any) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0.5)
        self.token, self.num_ranks, self.ranks = secrets.token_hex(), num_ranks, list[IO[str]]()
        address = "{}:{}".format(*self.server.getsockname())
        allocator = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
        self.words = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-m", __package__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.words,
            text=True,
            env={**allocator, **os.environ},
        )
        assert self.process.stdin is not None
        with self.process.stdin as configuration:
            json.dump({**config, "turns": {"address": address, "token": self.token, **settings}}, configuration)

    def __enter__(self) -> Case:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self.ranks:
            rank.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.server.close()
        self.words.close()

    def start(self) -> None:
        """Until all its processes wait for their first turn; raises `CaseFailure` where they cannot."""
        while len(self.ranks) < self.num_ranks:
            try:
                connection, _ = self.server.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise self._failure() from None
                continue
            connection.settimeout(None)
            rank = connection.makefile("rw", encoding="utf-8")
            if self.token in rank.readline():  # else it is a stranger, or has ended
                self.ranks.append(rank)

    def turn(self) -> dict[str, float]:
        """The figures of the rank that took longest."""
        try:
            for rank in self.ranks:
                print("go", file=rank, flush=True)
            answers = [json.loads(rank.readline()) for rank in self.ranks]
        except (OSError, ValueError) as error:
            raise self._failure() from error
        slowest: dict[str, float] = max(answers, key=lambda figures: figures["seconds"])
        return slowest

    def _failure(self) -> CaseFailure:
        deadline = time.monotonic() + 60  # the launcher ends the other ranks first
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        self.words.seek(0)
        lines = [line.strip() for line in self.words if line.strip()]
        return CaseFailure((lines[-1] if lines else "it ended without a word").removeprefix("error: "))
