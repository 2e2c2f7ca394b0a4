"""Errors that a command prints as one sentence: a user's mistake, or a fault of the data, the disk or the machine."""

import difflib
import errno
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


class UserError(Exception):
    """Names the value and the remedy; the command prints it and exits with `exit_code`, without a traceback.

    An `Exception`, not a `SystemExit`, so that one refused job does not end a Hydra sweep.
    """

    exit_code = 2


class Fault(UserError):
    """A fault that is no mistake on the command line: unreadable data, a full disk, a loss that is NaN."""

    exit_code = 1


class BadBundle(Fault):
    """A bundle that differs from what was published or signed; the sentence names the file."""


def of_files(error: OSError, place: Path) -> UserError | None:
    """The sentence for a full disk, or a file that this user may not read or write; None for any other error."""
    if error.errno not in OF_FILES:
        return None
    if error.filename is None:  # raised by a write to an open file
        return UserError(f"a file in {place} cannot be written: {error.strerror}; what was saved before it stays.")
    return UserError(f"{error.filename} cannot be read or written: {error.strerror}.")


def first_of(names: Sequence[str], separator: str = ", ") -> str:
    """The first five names, and dots for the others, for a sentence about many."""
    return separator.join(names[:5]) + (f"{separator}..." if len(names) > 5 else "")


def nearest(word: str, known: Iterable[str], section: str = "") -> str:
    """The end of an error sentence: the most similar known word, with the section before it, or all known words."""
    words = sorted(known)
    if not words:
        return "there are none to set."
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section}.{close[0]}'?" if section else f"did you mean '{close[0]}'?"
    return f"choose one of: {', '.join(words)}."


def one_line(error: BaseException) -> str:
    """The message and the line that raised it, of the owner's code if there is one: to find a mistake in a network."""
    frames, engine = traceback.extract_tb(error.__traceback__), Path(__file__).parent
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(engine.parent)]
    own = [frame for frame in own if not Path(frame.filename).is_relative_to(engine)]
    raised = (own or frames)[-1]
    return f"{' '.join(str(error).split())} ({Path(raised.filename).name}:{raised.lineno})"


def lost_worker(error: Exception, num_workers: int = 0) -> Fault | None:
    """The sentence for a DataLoader worker process that died; None for any other error.

    A worker that dies while it hands over a batch shows as a connection that ends, if the loader has workers at all.
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
