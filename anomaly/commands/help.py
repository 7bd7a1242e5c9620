"""Help of a verb, from its function's signature and docstring; the docs site shows the same."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from anomaly.commands.signature import Signature, docstring_texts

INDENT = 26
"""Column at which the texts of options begin"""


@dataclass(frozen=True)
class Option:
    """One option or positional argument of a verb."""

    name: str
    """spelling on the command line: `--batch-size`, or `MODEL` for a positional argument"""
    value: str
    """placeholder of the value, or the choices; empty for a switch"""
    text: str
    default: Any
    """default value; `inspect.Parameter.empty` for a required option"""

    @property
    def full_text(self) -> str:
        """Text with its default."""
        hidden = self.default is None or self.default is False or self.default is inspect.Parameter.empty
        shown = not hidden and self.default != ()
        return f"{self.text.rstrip('.')} (default: {_plain(self.default)})" if shown else self.text.rstrip(".")


def options_of(signature: Signature) -> dict[str, list[Option]]:
    """Options of a verb by heading, in the order of the help.

    Args:
        signature: parameters of the verb, and of its detector.
    """
    texts = docstring_texts(signature.function)
    words = [Option(name.upper(), "", texts[name], signature.defaults[name]) for name in signature.positionals]
    named = [
        _option(name, signature.hints[name], texts[name], default)
        for name, default in signature.defaults.items()
        if name not in signature.positionals and not name.startswith("model.")
    ]
    groups = {
        "": words,
        "required": [option for option in named if option.default is inspect.Parameter.empty],
        "options": [option for option in named if option.default is not inspect.Parameter.empty],
    }
    groups["options"].append(Option("--config", "FILE", "YAML file with options, see configs/", None))
    if signature.constructor is not None:
        inner = docstring_texts(signature.constructor)
        groups[f"options of {signature.detector}"] = [
            _option(name, signature.hints[name], inner.get(name.removeprefix("model."), ""), default)
            for name, default in signature.defaults.items()
            if name.startswith("model.")
        ]
    return {heading: options for heading, options in groups.items() if options}


def help_text(verb: str, signature: Signature) -> str:
    """Help of a verb, wrapped to the width of the terminal."""
    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    groups = options_of(signature)
    words = [f"[{o.name}]" if o.default is not inspect.Parameter.empty else o.name for o in groups.get("", [])]
    required = [f"{option.name} {option.value}".strip() for option in groups.get("required", [])]
    lines = [" ".join(["usage: anomaly", verb, *words, *required, "[OPTIONS]"]), ""]
    lines += [textwrap.fill(part, width) for part in description(signature.function)]
    for heading, options in groups.items():
        lines += ["", *([f"{heading}:"] if heading else [])]
        for option in options:
            lines += _wrapped(option, width)
    return "\n".join(lines)


def description(function: Callable[..., Any]) -> list[str]:
    """Paragraphs of a docstring before its first section."""
    text = re.split(r"\n(?=(?:Args|Returns|Raises|Yields):)", inspect.getdoc(function) or "")[0]
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _option(name: str, hint: Any, text: str, default: Any) -> Option:
    return Option("--" + name.replace("_", "-"), _value(name, hint), text, default)


def _value(name: str, hint: Any) -> str:
    """Placeholder of a value."""
    if hint is bool:
        return ""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    word = {int: "N", float: "X"}.get(hint, name.rpartition(".")[2].upper())
    if get_origin(hint) is tuple:
        return " ".join(word for kind in get_args(hint) if kind is not Ellipsis)
    return word


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_plain, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wrapped(option: Option, width: int) -> list[str]:
    head = f"  {option.name} {option.value}".rstrip()
    body = textwrap.wrap(option.full_text, width - INDENT)
    if len(head) < INDENT - 1:
        return [head.ljust(INDENT) + body[0], *(" " * INDENT + line for line in body[1:])]
    return [head, *(" " * INDENT + line for line in body)]
