"""Which version of a model is served, and how the server moves to another one while it answers."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from ..inference.runtime import MANIFEST, BadBundle, versions
from .metrics import Metrics
from .served import Served

log = logging.getLogger(__name__)

Fingerprint = frozenset[tuple[str, int, int]]


class Versions:
    """`current` is the newest version in `folder` that passes its checks, or the bundle `folder` itself.

    Whoever asks takes `current` once and keeps it to the end, so a request is answered by the version that it met.
    Raises `BadBundle` at the start if there is none, or what `load` raises for another reason.
    """

    def __init__(self, folder: Path, load: Callable[[Path], Served], metrics: Metrics) -> None:
        self._folder, self._load, self._metrics = folder, load, metrics
        self.is_pinned = (folder / MANIFEST).exists()
        self._bad: dict[int, Fingerprint] = {}  # versions that failed, as they were then
        self._moving = asyncio.Lock()
        self.current = self._first()
        metrics.tell_model(self.current.bundle.manifest)

    async def move(self, retry: bool = False) -> None:
        """To the newest version that passes its checks: a later one, or an earlier one if the current is gone.

        A version that failed stays out until its files change, or with `retry` is tried again. If none passes, the
        current one stays.
        """
        async with self._moving:
            if self.is_pinned:
                log.info("kept        version %s, which bundle= names", self.current.model.version)
                return
            if retry:
                self._bad.clear()
            loop = asyncio.get_running_loop()
            for version in self._candidates():
                if str(version) == self.current.model.version:
                    return
                served = await loop.run_in_executor(None, self._try, version)
                if served is not None:
                    log.info("moved       from version %s to %s", self.current.model.version, version)
                    self.current = served
                    self._metrics.tell_model(served.bundle.manifest)
                    return

    async def watch(self, seconds: float) -> None:
        """Looks for another version every so many seconds, to the end."""
        while True:
            await asyncio.sleep(seconds)
            await self.move()

    def _first(self) -> Served:
        if self.is_pinned:
            return self._load(self._folder)
        last: BadBundle | None = None
        for version in self._candidates():
            try:
                return self._load(self._folder / str(version))
            except BadBundle as error:
                last = error
                self._leave_out(version, error)
        raise last or BadBundle(f"{self._folder} holds no version: export one, or give bundle=artifacts/<name>.")

    def _candidates(self) -> list[int]:
        """The newest first, without those that failed and have not changed since."""
        try:
            found = sorted(versions(self._folder), reverse=True)
        except OSError as error:
            log.warning("kept        version %s: %s", self.current.model.version, error)
            return []
        return [version for version in found if self._bad.get(version) != _fingerprint(self._folder / str(version))]

    def _try(self, version: int) -> Served | None:
        """In a thread: requests are answered meanwhile."""
        try:
            return self._load(self._folder / str(version))
        except Exception as error:  # of a copy that is not finished, or was taken away again
            self._leave_out(version, error)
            return None

    def _leave_out(self, version: int, error: Exception) -> None:
        self._bad[version] = _fingerprint(self._folder / str(version))
        self._metrics.failed_reloads.inc()
        log.warning("left out    version %d: %s", version, " ".join(str(error).split()))


def _fingerprint(folder: Path) -> Fingerprint:
    """Changes with the files; empty for a folder that is gone."""
    try:
        found = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, status.st_size, status.st_mtime_ns) for name, status in found)
