"""One form for each value of a table, so that what CSV, Parquet and JSON spell differently is one category or label."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

TRUTHS = {"true": Decimal(1), "false": Decimal(0)}  # in small letters
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
PADDED = re.compile(r"[+-]?0[0-9]")  # as a zip code or an article number, which is text: 007 is not 7
MAX_LENGTH = 400  # characters of text that may be a number


def as_word(value: Any) -> str:
    """Returns a cell as text: "" for a gap, `true` and `false`, exact digits without an idle point or zeros."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip()
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating | Decimal):
        if math.isnan(value):
            return ""
        return _digits(Decimal(str(value))) if math.isfinite(value) else str(value)
    return str(value)


def value_of(word: str) -> Decimal | None:
    """Returns the number that a word spells, 1 for `true` and 0 for `false`; None for other text."""
    if len(word) <= MAX_LENGTH and NUMBER.fullmatch(word):
        return Decimal(word)
    return TRUTHS.get(word.lower())


def canonical(words: Iterable[str]) -> dict[str, str]:
    """Maps each spelling to one form of its value, where all words are numbers, or all are 0, 1, true or false.

    Text stays as it is, and so do numbers of which one has leading zeros.
    """
    spellings = set(words) - {""}
    values = {word: value_of(word) for word in spellings}
    are_truths = any(word.lower() in TRUTHS for word in spellings)
    is_text = None in values.values() or any(PADDED.match(word) for word in spellings)
    if is_text or (are_truths and set(values.values()) - set(TRUTHS.values())):
        return {word: word for word in spellings}
    truths = {value: word for word, value in TRUTHS.items()}
    return {
        word: truths[value] if are_truths else _digits(value) for word, value in values.items() if value is not None
    }


def is_true_or_false(words: Iterable[str]) -> bool:
    """Whether all words are true or false, or 1 or 0 beside them, and no gap alone."""
    forms = set(canonical(words).values())
    return bool(forms) and forms <= TRUTHS.keys()


def _digits(number: Decimal) -> str:
    if abs(number.adjusted()) > MAX_LENGTH:
        return str(number)
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


class Vocabulary:
    """Finds the places of words in a list of known ones: as they are spelled, or by their value if only one has it."""

    def __init__(self, words: Sequence[str]) -> None:
        self._places = {word: place for place, word in enumerate(words)}
        places_by_value: dict[Decimal, list[int]] = defaultdict(list)
        for word, place in self._places.items():
            if (value := value_of(word)) is not None:
                places_by_value[value].append(place)
        self._places_by_value = {value: places[0] for value, places in places_by_value.items() if len(places) == 1}
        self._holds_truths = places_by_value.keys() <= set(TRUTHS.values())

    def find(self, word: str) -> int | None:
        place = self._places.get(word)
        if place is None and (self._holds_truths or word.lower() not in TRUTHS):
            value = value_of(word)
            place = None if value is None else self._places_by_value.get(value)
        return place
