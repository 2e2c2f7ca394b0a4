"""A user's mistake, or a fault of the world around a run, told in one sentence."""

import difflib
import errno
import traceback
from collections.abc import Iterable
from pathlib import Path

OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class UserError(Exception):
    """Names the value and the remedy; the command prints it and exits with `exit_code`, without a traceback.

    An `Exception`, not a `SystemExit`, so that one refused job does not end a whole Hydra sweep.
    """

    exit_code = 2


class Fault(UserError):
    """What went wrong in a run that was right as it was typed: of its data, its disk, its numbers."""

    exit_code = 1


def of_files(error: OSError, place: Path) -> UserError | None:
    """Of a disk that is full, and of files that this user may not read or write: no mistake of this code."""
    if error.errno not in OF_FILES:
        return None
    if error.filename is None:  # of what was being written
        return UserError(f"a file in {place} cannot be written: {error.strerror}; what was saved before it stays.")
    return UserError(f"{error.filename} cannot be read or written: {error.strerror}.")


def nearest(word: str, known: Iterable[str], section: str = "") -> str:
    """The end of a refusal: the likeliest of the known words, with the section before it, or all of them."""
    words = sorted(known)
    if not words:
        return "there are none to set."
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section}.{close[0]}'?" if section else f"did you mean '{close[0]}'?"
    return f"choose one of: {', '.join(words)}."


def one_line(error: BaseException) -> str:
    """The message, and the line that raised it: a mistake in one's own network should be easy to find."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    return f"{' '.join(str(error).split())} ({Path(raised.filename).name}:{raised.lineno})"


def lost_worker(error: Exception, num_workers: int = 0) -> Fault | None:
    """None for another error; `num_workers` of the loader that raised it.

    One that is lost while it hands over a batch shows as a connection that ends. What a sample raised there does not:
    torch raises that again as "Caught ...".
    """
    is_handed_over = (
        num_workers > 0 and isinstance(error, ConnectionError | EOFError) and not is_raised_by_sample(error)
    )
    if not (is_handed_over or (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"))):
        return None
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return Fault(
        f"a process that reads samples was lost ({reason}): it may have run out of memory, or of shared memory; "
        "take fewer with data.num_workers=, or none with data.num_workers=0."
    )


def is_raised_by_sample(error: Exception) -> bool:
    """Whether a sample raised it in a worker process; torch raises it again as "Caught ..."."""
    return str(error).strip().startswith("Caught ")
