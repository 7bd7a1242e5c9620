"""Options of a verb from its function's signature, the command line and a YAML file; a misspelt name is refused."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from anomaly.commands.help import help_text
from anomaly.commands.signature import Signature, signature_of
from anomaly.errors import UsageError
from anomaly.system.suggestions import nearest

RENAMED_OPTIONS = {
    "group": "part_group",
    "promise": "guarantee",
    "limit": "threshold",
    "review_limit": "review_threshold",
    "marks": "labels",
}
"""Option of an earlier version -> its present name"""


def parse(verb: str, function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the options of a verb.

    A function with the parameters `detector` and `model` takes the arguments of the detector's constructor as
    `--model.NAME`.

    Args:
        verb: name of the verb, for the usage text.
        function: function whose parameters are the options.
        arguments: command line after the verb.

    Returns:
        The keyword arguments of the function.

    Raises:
        UsageError: an unknown or abbreviated option, or a value of another type.
        SystemExit: after `--help`.
    """
    file = _read_yaml(_value_of("config", arguments))
    signature = signature_of(function, detector=_detector(function, file, arguments))
    if "--help" in arguments or "-h" in arguments:
        print(help_text(verb, signature))
        raise SystemExit(0)
    spelled = _spelled(signature, arguments)
    _check_names(signature, spelled, file)
    parser = _parser(verb, signature)
    try:
        values = parser.parse_args(spelled)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise UsageError(f"{verb}: {error}") from error
    found: dict[str, Any] = parser.instantiate_classes(values).as_dict()
    found.pop("config", None)
    return found | {name: signature.defaults[name] for name in _optional_positionals(signature) if found[name] is None}


def _parser(verb: str, signature: Signature) -> ArgumentParser:
    parser = ArgumentParser(prog=f"anomaly {verb}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile)
    optional = _optional_positionals(signature)
    skip: set[str | int] = {*optional, "model"} if "detector" in signature.hints else {*optional}
    parser.add_function_arguments(signature.function, as_group=False, as_positional=True, skip=skip)
    for name in optional:
        parser.add_argument(name, nargs="?", type=str)
    if signature.constructor is not None:
        parser.add_class_arguments(signature.constructor, "model", as_group=False)
    return parser


def _optional_positionals(signature: Signature) -> list[str]:
    return [name for name in signature.positionals if signature.defaults[name] is not inspect.Parameter.empty]


def _detector(function: Callable[..., Any], file: dict[str, Any], arguments: Sequence[str]) -> str | None:
    """Name of the detector whose options the verb takes; None without such options.

    Raises:
        UsageError: a class path in the YAML file.
    """
    parameters = inspect.signature(function).parameters
    if "detector" not in parameters:
        return None
    default = parameters["detector"].default
    named = str(file.get("detector", default))
    if ":" in named:
        raise UsageError(f"detector {named!r} in a YAML file: give a class on the command line, with --detector")
    name = _value_of("detector", arguments) or named
    if ":" in name and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a class may lie in the working folder, as for `python -m`
    return None if name in ("auto", "None") else name  # chosen later, without options here


def _spelled(signature: Signature, arguments: Sequence[str]) -> list[str]:
    """Spell options as the parser does.

    `--max-pixels` becomes `--max_pixels`, a bare `--resume` becomes `--resume=true`, and `--interpolate A B`, an option of
    two values, becomes `--interpolate=["A", "B"]`. The value `a,b` of a list becomes `[a,b]`. Positional arguments `A B`
    of a list become `["A", "B"]`. Optional positional arguments are moved to the front.
    """
    takes_list = any(get_origin(signature.hints.get(name)) is list for name in signature.positionals)
    gathers = takes_list or bool(_optional_positionals(signature))
    spelled: list[str] = []
    first: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if gathers and not argument.startswith("--"):
            first.append(argument)
            continue
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            key = name[2:].replace("-", "_")
            argument = f"--{key}{equals}{value}"
            hint = None if equals else signature.hints.get(key)
            if hint is bool and (not rest or rest[0] not in ("true", "false")):
                argument += "=true"
            elif get_origin(hint) is tuple:
                num = len(get_args(hint))
                values, rest = rest[:num], rest[num:]
                if len(values) < num or any(value.startswith("--") for value in values):
                    raise UsageError(f"{name} takes {num} values: give {name} A B")
                argument += "=" + json.dumps(values)
            elif get_origin(signature.hints.get(key)) is Sequence:
                listed = value if equals else (rest.pop(0) if rest else "")
                argument = f"--{key}=" + (listed if listed.startswith("[") else f"[{listed}]")
            elif gathers and not equals and rest:
                argument += "=" + rest.pop(0)
        spelled.append(argument)
    return [*([json.dumps(first)] if first and takes_list else first), *spelled]


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Value of `--option` on the command line; None if it is missing.

    Raises:
        UsageError: it is given twice.
    """
    found = []
    for position, argument in enumerate(arguments):
        if argument == f"--{option}" and position + 1 < len(arguments):
            found.append(arguments[position + 1])
        elif argument.startswith(f"--{option}="):
            found.append(argument.partition("=")[2])
    if len(found) > 1:
        raise UsageError(f"--{option} is given {len(found)} times, {' and '.join(found)}: give one of them")
    return found[0] if found else None


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not a YAML file, correct it: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no options: write NAME: VALUE, one per line")
    return content


def _check_names(signature: Signature, arguments: Sequence[str], file: dict[str, Any]) -> None:
    """Refuse an option or a key that is not written in full, before the parser guesses."""
    keys = [name for name in signature.hints if name not in signature.positionals]
    options = ["--help", "--config", "--print_config", *(f"--{key}" for key in keys)]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in options:
            _check_named(signature, name[2:])
            raise UsageError(_unknown(name, options))
    for key in _flat(file):
        if key not in signature.hints:
            _check_named(signature, key)
            raise UsageError(f"no option {key!r} (in the YAML file); nearest: {nearest(key, signature.hints)!r}")


def _check_named(signature: Signature, key: str) -> None:
    """Refuse an option of a detector where none is named."""
    if key.startswith("model.") and "detector" in signature.hints and signature.detector is None:
        raise UsageError(
            f"no option {key!r} for detector 'auto': the race sets the options; name a detector, e.g. --detector memory_bank"
        )


def _unknown(name: str, options: Sequence[str]) -> str:
    new = f"--{RENAMED_OPTIONS.get(name[2:])}"
    if new in options:
        return f"the option {name.replace('_', '-')} is now {new.replace('_', '-')}"
    return f"no option {name}; nearest: {nearest(name, options).replace('_', '-')}"


def _flat(content: dict[str, Any]) -> list[str]:
    """Keys of a YAML file, those of the detector as `model.NAME`."""
    model = content.get("model")
    nested = [f"model.{key}" for key in model] if isinstance(model, dict) else []
    return [key for key in content if not (key == "model" and nested)] + nested
