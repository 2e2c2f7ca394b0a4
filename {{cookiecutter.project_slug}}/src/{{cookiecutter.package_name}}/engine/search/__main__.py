"""The process of a trial: the command `train`, which ends at once when the search that started it ends.

The search holds the other end of the standard input: the system closes it with the search, even after `kill -9`.
"""

import os
import sys
import threading
from importlib import import_module

from ..config import PACKAGE


def _end_with_search() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_search, daemon=True).start()
    import_module(f"{PACKAGE}.train").main()
