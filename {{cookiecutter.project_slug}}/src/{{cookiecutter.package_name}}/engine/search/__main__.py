"""The process of a trial: the command `train`, which ends at once when the search that started it has ended.

That one holds the other end of the standard input: it is closed with it, whatever it ends by.
"""

import os
import sys
import threading
from importlib import import_module

from ..config import PACKAGE


def _end_with_the_search() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_search, daemon=True).start()
    import_module(f"{PACKAGE}.train").main()
