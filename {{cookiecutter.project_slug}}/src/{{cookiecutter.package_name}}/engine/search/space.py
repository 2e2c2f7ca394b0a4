"""The search space: from `search.space` to Optuna's distributions, and from chosen values to command-line options."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
from hydra.core.override_parser.types import Quote, QuotedString
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..errors import UserError, nearest

BOUNDS = ("low", "high", "log", "step")
Choice = None | bool | int | float | str
Space = dict[str, BaseDistribution]


def distributions(space: Mapping[str, Any]) -> Space:
    """A list is a categorical choice; `low` and `high` are a range, of integers where all its numbers are integers."""
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
    try:
        return kind(**{key: value for key, value in values.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}={dict(values)} is no space: {error}") from error


def _choice(value: Any, place: str) -> Choice:
    """Optuna stores plain values only: a list is stored as its text."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{place} has the choice {value}: give numbers, words or lists of them.")


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Lets Optuna choose a value for every option."""
    for option, kind in space.items():
        if isinstance(kind, CategoricalDistribution):
            trial.suggest_categorical(option, kind.choices)
        elif isinstance(kind, IntDistribution):
            trial.suggest_int(option, kind.low, kind.high, step=kind.step, log=kind.log)
        elif isinstance(kind, FloatDistribution):
            trial.suggest_float(option, kind.low, kind.high, step=kind.step, log=kind.log)
    return trial.params


def options(params: Mapping[str, Any], space: Space) -> list[str]:
    """The chosen values as options of the command line."""
    return [f"{option}={to_text(value, space[option])}" for option, value in params.items()]


def to_text(value: Any, kind: BaseDistribution) -> str:
    """The value as the trial receives it: a float of a range with six digits."""
    return f"{value:.6g}" if isinstance(kind, FloatDistribution) else hydra_value(value)


def hydra_value(value: Choice) -> str:
    """The value in Hydra's grammar; text in quotes where Hydra could take it for something else."""
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower()
    is_plain = value.startswith("[") or value.replace("_", "").replace("-", "").isalnum()
    return value if is_plain else QuotedString(value, Quote.double).with_quotes()


def short_names(space: Space) -> dict[str, str]:
    """The last word of each option, `lr` for `model.optimizer.lr`, unless two options share it."""
    words = {option: option.rpartition(".")[2] for option in space}
    counts = Counter(words.values())
    return {option: word if counts[word] == 1 else option for option, word in words.items()}


def samples(space: Space) -> list[dict[str, Any]]:
    """Combinations that together contain every categorical choice and both ends of every range."""
    first = {option: _ends(kind)[0] for option, kind in space.items()}
    return [first, *({**first, option: value} for option, kind in space.items() for value in _ends(kind)[1:])]


def _ends(kind: BaseDistribution) -> list[Any]:
    if isinstance(kind, CategoricalDistribution):
        return list(kind.choices)
    assert isinstance(kind, FloatDistribution | IntDistribution)
    return [kind.low, kind.high]
