"""Arguments checked against the type hints of a public function, where they enter."""

from __future__ import annotations

import math
import numbers
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from anomaly.errors import UsageError


def check_types(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check arguments against their type hints; NaN is not a number.

    Args:
        values: argument name -> value.
        hints: argument name -> type hint, as `typing.get_type_hints` gives it; arguments without a hint pass.

    Raises:
        UsageError: the argument, its value, and the type or the choices that it takes.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            shown = " ".join(repr(value).split())
            raise UsageError(f"{name} is {type(value).__name__} {shown:.60}: give {_description(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint in (None, type(None)):
        return value is None
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return not isinstance(value, bool) and isinstance(value, numbers.Real) and not math.isnan(value)
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return isinstance(value, os.PathLike)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        element = inner[0] if inner else Any
        return isinstance(value, (list, tuple)) and all(_fits(one, element) for one in value)
    return not isinstance(hint, type) or isinstance(value, hint)


def _description(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_description(one) for one in inner))
    if origin is Literal:
        return "one of " + ", ".join(repr(one) for one in inner)
    if hint in (None, type(None)):
        return "None"
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "a path"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return "a dict of names and values"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {_description(inner[0])}" if inner else "a list"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
