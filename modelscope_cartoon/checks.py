"""Checks of single values: the value as the engine wants it, or one sentence that says what was given, what is
accepted and the nearest that is.
"""
from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from typing import Any

from modelscope_cartoon.errors import InvalidPrompt, InvalidRequest
from modelscope_cartoon.prompt import MAX_CHARACTERS, clean

SEED_LIMIT = 2**32        # torch's CPU noise knows 32 bits of a seed
MIN_SIZE, MAX_SIZE, SIZE_STEP = 64, 2048, 8


def text(key: str, value: Any) -> tuple[str, ...]:
    many = value if isinstance(value, (list, tuple)) else [value]
    if not many or not all(isinstance(one, str) for one in many):
        raise InvalidPrompt(f'{key} is {shown(value)}; accepted: a string of at most {MAX_CHARACTERS:,} characters, '
                            'or a list of strings.')
    return tuple(clean(one) for one in many)


def prompts(key: str, value: Any) -> tuple[str, ...]:
    """As given: the recipe keeps them, the preprocessor cleans them."""
    text(key, value)
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def words(key: str, value: Any) -> str:
    accepted = 'a few words, at most 100 characters in one line'
    if not isinstance(value, str) or not value.strip() or len(value) > 100 or not value.isprintable():
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}.')
    return value.strip()


def whole(key: str, value: Any, least: int, most: int) -> int:
    accepted = f'a whole number from {least} to {most}'
    given = _index(key, value, accepted)
    if not least <= given <= most:
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}; nearest: {_within(given, least, most)}.')
    return given


def size(key: str, value: Any) -> int:
    accepted = f'a multiple of {SIZE_STEP} from {MIN_SIZE} to {MAX_SIZE}'
    given = _index(key, value, accepted)
    nearest = round(_within(given, MIN_SIZE, MAX_SIZE) / SIZE_STEP) * SIZE_STEP
    if given != nearest:
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}; nearest: {nearest}.')
    return given


def number(key: str, value: Any, least: float, most: float) -> float:
    accepted = f'a number from {least:g} to {most:g}'
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}.')
    if not least <= value <= most:
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}; '
                             f'nearest: {_within(value, least, most):g}.')
    return float(value)


def interval(key: str, value: Any) -> tuple[float, float]:
    """(start, stop), fractions of the steps."""
    many = list(value) if isinstance(value, (list, tuple)) else []
    if len(many) != 2 or not all(isinstance(one, numbers.Real) and not isinstance(one, bool) for one in many) \
            or not 0 <= many[0] < many[1] <= 1:
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: two numbers (start, stop), fractions of the steps '
                             'with 0 <= start < stop <= 1, such as (0, 0.5).')
    return float(many[0]), float(many[1])


def _index(key: str, value: Any, accepted: str) -> int:
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}.')
    try:
        return operator.index(value)
    except TypeError as error:      # numpy arrays have the method and refuse
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: {accepted}.') from error


def _within(value: Any, least: Any, most: Any) -> Any:
    return min(max(value, least), most)


def seed(key: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise InvalidRequest('seed is an empty list; give one seed, or one for each picture.')
        return tuple(whole(key, one, 0, SEED_LIMIT - 1) for one in value)
    return whole(key, value, 0, SEED_LIMIT - 1)


def truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: True or False.')
    return value


def function(key: str, value: Any) -> Callable:
    if not callable(value):
        raise InvalidRequest(f'{key} is {shown(value)}; accepted: a function.')
    return value


def shown(value: Any) -> str:
    """A short repr with the type, whatever the value is."""
    try:
        text = repr(value)
    except Exception:               # Python refuses to print integers of more than 4300 digits
        text = '...'
    return f'{text if len(text) <= 60 else text[:57] + "..."} ({type(value).__name__})'
