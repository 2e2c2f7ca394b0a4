"""What a search may change: from `search.space` to Optuna's distributions, and from a choice to options."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ..errors import UserError, nearest

BOUNDS = ("low", "high", "log", "step")

Choice = None | bool | int | float | str
Space = dict[str, BaseDistribution]


def distributions(space: Mapping[str, Any]) -> Space:
    """Of each option: a list is a choice, `low` and `high` are a range, of whole numbers where both are whole."""
    if not space:
        raise UserError("search.space is empty: name an option in it, as 'model.optimizer.lr: [0.01, 0.001]'.")
    return {option: _distribution(option, values) for option, values in space.items()}


def _distribution(option: str, values: Any) -> BaseDistribution:
    place = f"search.space: {option}"
    if isinstance(values, list) and values:
        return CategoricalDistribution([_choice(value, place) for value in values])
    if not isinstance(values, Mapping) or not {"low", "high"} <= values.keys():
        raise UserError(f"{place}={values} is no space: give a list of choices, or low and high.")
    for key in values.keys() - set(BOUNDS):
        raise UserError(f"{place} has no '{key}'; {nearest(key, BOUNDS)}")
    numbers = [values[key] for key in ("low", "high", "step") if values.get(key) is not None]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise UserError(f"{place}={dict(values)} holds what is no number: give numbers as low, high and step.")
    kind = IntDistribution if all(isinstance(number, int) for number in numbers) else FloatDistribution
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}={dict(values)} is no space: {error}") from error


def _choice(value: Any, place: str) -> Choice:
    """Optuna keeps plain values only: a list is kept as its text."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{place} has the choice {value}: give numbers, words or lists of them.")


def options(params: Mapping[str, Any], space: Space) -> list[str]:
    """As the command line takes them; of a range six digits, which is what the trial is run with too."""
    return [f"{option}={rounded(value, space[option])}" for option, value in params.items()]


def rounded(value: Any, distribution: BaseDistribution) -> str:
    return f"{value:.6g}" if isinstance(distribution, FloatDistribution) else word(value)


def brief(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """To be read: four digits are enough."""
    return "  ".join(f"{names[option]}={figure(value)}" for option, value in params.items())


def figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else word(value)


def short_names(space: Space) -> dict[str, str]:
    """Of each option the shortest end that no other has: `lr` for `model.optimizer.lr`."""
    ends = {option: [option.split(".", level)[-1] for level in range(option.count("."), -1, -1)] for option in space}
    taken = Counter(end for of_option in ends.values() for end in of_option)
    return {option: next((end for end in of_option if taken[end] == 1), option) for option, of_option in ends.items()}


def word(value: Choice) -> str:
    """A value in Hydra's grammar; text in quotes where it could be taken for something else."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        return str(value)
    if value.startswith("[") or value.replace("_", "").replace("-", "").isalnum():
        return value
    return QuotedString(value, Quote.double).with_quotes()


def samples(space: Space) -> list[dict[str, Any]]:
    """Choices that together hold every one of each list, and the ends of each range: to try whether options exist."""
    first = {option: _ends(distribution)[0] for option, distribution in space.items()}
    others = [{**first, option: value} for option, distribution in space.items() for value in _ends(distribution)[1:]]
    return [first, *others]


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]
