"""Numbers as people write them: decimal commas, thousands, per cent, currencies. A column is read in one way."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from decimal import Decimal
from functools import cache

# Words for a missing number, in small letters; in a column of text only an empty cell is a gap.
GAPS = {"", "na", "n/a", "nan", "null", "none", "?"}
DECIMALS = (".", ",")
MINUS = dict.fromkeys(map(ord, "\N{MINUS SIGN}\N{SMALL HYPHEN-MINUS}\N{FULLWIDTH HYPHEN-MINUS}"), "-")
SPACES = " \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}"
EITHER_GROUPS = f"'\N{RIGHT SINGLE QUOTATION MARK}{SPACES}"
MAX_LENGTH = 400  # characters of a number
NUM_BARE = 1000  # from this number on, a person who separates thousands writes a separator

Number = int | float


class AmbiguousNumbers(ValueError):
    """The numbers of a column can be read in two ways."""


def read_number(word: str, decimal: str) -> Number | None:
    """Parses a cell with this decimal sign; None for text that is no number. Whole numbers are exact."""
    return _parse(*_without_units(word)[:2], decimal)


def decimal_of(words: Iterable[str], separator: str, preferred: str = "", others: Collection[str] = ()) -> str:
    """Returns the decimal sign of a column, from all of its cells; "" where each reading gives the same numbers.

    `preferred` decides between two readings that are possible, and so do `others`, the signs of the file's other
    columns. Raises `AmbiguousNumbers` if nothing decides, or if cells have different units.
    """
    spellings = {word for word in words if word.lower() not in GAPS}
    readings = {sign: {word: read_number(word, sign) for word in spellings} for sign in DECIMALS}
    possible = [sign for sign in DECIMALS if None not in readings[sign].values()]
    if not possible:  # not a column of numbers alone: the reading that more cells allow
        return max(DECIMALS, key=lambda sign: sum(value is not None for value in readings[sign].values()))
    _check_units(spellings)
    if len(possible) == 1:
        return possible[0]
    doubtful = sorted(word for word in spellings if readings["."][word] != readings[","][word])
    if not doubtful:
        return ""
    return preferred or _likely(spellings, doubtful, separator, set(others))


def _likely(spellings: set[str], doubtful: list[str], separator: str, others: set[str]) -> str:
    """Chooses between 1.22 and 1220 for `1.220`, as for `1,037`, where all doubtful cells have three digits behind."""
    signs = {sign for word in doubtful for sign in DECIMALS if sign in word}
    if len(signs) == 1:
        (sign,) = signs
        other = "," if sign == "." else "."
        bare = [abs(int(word)) for word in spellings if _is_whole(word)]
        if any(number >= NUM_BARE for number in bare):
            return sign  # who writes 1500 beside 1.220 does not separate thousands
        if sign == "." and separator != ";":
            return sign
        if bare and (sign == "." or separator != ";"):
            return other  # 976 beside 1.220: a decimal part would be there in each cell
        if not bare and sign == "," and separator == ";":
            return sign
    if len(others) == 1:
        return next(iter(others))
    first = doubtful[0]
    point, comma = (read_number(first, sign) for sign in DECIMALS)
    raise AmbiguousNumbers(
        f"'{first}' may be {point:.15g} or {comma:.15g}: write it without a separator of thousands, or say "
        "data.decimal=. or data.decimal=, in training"
    )


def _is_whole(word: str) -> bool:
    return word.lstrip("+-").isdecimal()


def _check_units(spellings: set[str]) -> None:
    units: dict[str, str] = {}
    for word in spellings:
        if not word.isalnum():
            _, per_cent, currency = _without_units(word)
            units.setdefault("%" if per_cent else currency, word)
    currencies = sorted(unit for unit in units if unit not in ("", "%"))
    if len(currencies) > 1:
        first, second = (units[unit] for unit in currencies[:2])
        raise AmbiguousNumbers(f"'{first}' and '{second}' are of two currencies: convert them to one")
    if "%" in units:
        bare = sorted(word for word in spellings if "%" not in word and word != "0")
        if bare:
            raise AmbiguousNumbers(f"'{units['%']}' is per cent, and '{bare[0]}' is not: write all with %, or none")


def _without_units(word: str) -> tuple[str, bool, str]:
    """Returns the digits with their sign, whether they are per cent, and the symbol of a currency."""
    word = word.strip().translate(MINUS)
    if word.isascii() and not word.startswith(("$", "-$", "+$")) and not word.endswith(("%", "$")):
        return word, False, ""
    sign, body = (word[0], word[1:].lstrip()) if word[:1] in ("-", "+") else ("", word)
    per_cent, currency = body.endswith("%"), ""
    if per_cent:
        body = body[:-1].rstrip()
    elif body and unicodedata.category(body[0]) == "Sc":
        currency, body = body[0], body[1:].lstrip()
    elif body and unicodedata.category(body[-1]) == "Sc":
        currency, body = body[-1], body[:-1].rstrip()
    if not sign and body[:1] in ("-", "+"):  # as $-3
        sign, body = body[0], body[1:]
    return sign + body, per_cent, currency


@cache
def _patterns(decimal: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Returns the patterns of a number without, and with separators of thousands."""
    sign, groups = re.escape(decimal), re.escape(("," if decimal == "." else ".") + EITHER_GROUPS)
    plain = rf"[+-]?([0-9]+({sign}[0-9]*)?|{sign}[0-9]+)([eE][+-]?[0-9]{{1,5}})?"
    grouped = rf"[+-]?[1-9][0-9]{{0,2}}([{groups}])[0-9]{{3}}(\1[0-9]{{3}})*({sign}[0-9]+)?"
    return re.compile(plain), re.compile(grouped)


def _parse(word: str, per_cent: bool, decimal: str) -> Number | None:
    if len(word) > MAX_LENGTH:
        return None
    plain, grouped = _patterns(decimal)
    if not plain.fullmatch(word):
        match = grouped.fullmatch(word)
        if match is None:
            return None
        word = word.replace(match[1], "")
    word = word.replace(decimal, ".")
    if per_cent:
        return float(Decimal(word) / 100)
    return int(word) if _is_whole(word) else float(word)
