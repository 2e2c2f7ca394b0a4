"""A user's mistake, told in one sentence."""

import difflib
from collections.abc import Iterable


class Refusal(Exception):
    """Names the value and the remedy; the command prints it and exits with `exit_code`, without a traceback.

    An `Exception`, not a `SystemExit`, so that one refused job does not end a whole Hydra sweep.
    """

    exit_code = 2


def nearest(word: str, known: Iterable[str], section: str = "") -> str:
    """The end of a refusal: the likeliest of the known words, with the section before it, or all of them."""
    words = sorted(known)
    if not words:
        return "there are none to set."
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{section}.{close[0]}'?" if section else f"did you mean '{close[0]}'?"
    return f"choose one of: {', '.join(words)}."
