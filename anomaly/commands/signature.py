"""Parameters of a verb and of its detector: names, types, defaults and texts."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from anomaly.registry import model_class


@dataclass(frozen=True)
class Signature:
    """Parameters of a verb by key, such as `alpha`, or `model.epochs` for the detector's constructor."""

    function: Callable[..., Any]
    detector: str | None
    """name of the detector or sampler whose options the verb takes"""
    constructor: type | None
    """class of the detector or sampler"""
    hints: dict[str, Any]
    """key -> type, without None"""
    defaults: dict[str, Any]
    """key -> default; `inspect.Parameter.empty` for a required parameter"""
    positionals: tuple[str, ...]
    """keys of positional arguments"""


def signature_of(function: Callable[..., Any], *, detector: str | None = None) -> Signature:
    """Read the parameters of a verb.

    Args:
        function: function of the verb; its parameter `model` beside `detector` holds the constructor's arguments.
        detector: name of the detector or sampler whose options the verb takes; None without such options.

    Raises:
        UsageError: an unknown detector.
    """
    parameters = dict(inspect.signature(function).parameters)
    if "detector" in parameters:
        parameters.pop("model", None)
    type_hints = get_type_hints(function)
    hints = {name: _without_none(type_hints[name]) for name in parameters}
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    positionals = tuple(name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
    constructor = None if detector is None else model_class(detector)
    if constructor is not None:
        type_hints = get_type_hints(constructor.__init__)
        for name, parameter in inspect.signature(constructor).parameters.items():
            hints[f"model.{name}"] = _without_none(type_hints[name])
            defaults[f"model.{name}"] = parameter.default
    return Signature(function, detector, constructor, hints, defaults, positionals)


def docstring_texts(documented: Callable[..., Any] | type) -> dict[str, str]:
    """Parameter -> its text in the section `Args` of a docstring."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    texts = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in texts}


def _without_none(hint: Any) -> Any:
    """Type of an optional parameter without None."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint
