from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from anomaly.errors import UsageError
from anomaly.system.argument_types import check_types

FITS: list[tuple[Any, Any]] = [
    (1, int), (np.int64(3), int), (1, float), (np.float32(0.5), float), (float("inf"), float), ("a", str), (True, bool),
    (None, int | None), ("cpu", Literal["cpu", "cuda"]), (Path("a"), str | Path), ("a", str | Path),
    ((1, 2), Sequence[int]), ([], Sequence[int]), ({"a": 1}, Mapping[str, Any]), (object(), Any), (None, Any),
]  # fmt: skip
MISFITS: list[tuple[Any, Any, str]] = [
    ("1", int, "x is str '1': give a whole number"),
    (1.5, int, "x is float 1.5: give a whole number"),
    (True, int, "x is bool True: give a whole number"),
    (float("nan"), float, "x is float nan: give a number"),
    ("1", float, "x is str '1': give a number"),
    (None, int, "x is NoneType None: give a whole number"),
    ("x", int | None, "x is str 'x': give a whole number or None"),
    ("gpu", Literal["cpu", "cuda"], "x is str 'gpu': give one of 'cpu', 'cuda'"),
    (True, Literal[1, 2], "x is bool True: give one of 1, 2"),
    (7, str | Path, "x is int 7: give a text or a path"),
    ("ab", Sequence[int], "x is str 'ab': give a list of a whole number"),
    (["a"], Sequence[int], r"x is list \['a'\]: give a list of a whole number"),
    ([1], Mapping[str, Any], r"x is list \[1\]: give a dict of names and values"),
    ({1: 2}, Mapping[str, Any], r"x is dict \{1: 2\}: give a dict"),
    (1, bool, "x is int 1: give True or False"),
]


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_value_of_the_type_passes(value: Any, hint: Any) -> None:
    check_types({"x": value}, {"x": hint})


@pytest.mark.parametrize(("value", "hint", "message"), MISFITS)
def test_other_value_is_refused_with_its_name_and_the_way_out(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_types({"x": value}, {"x": hint})
