"""Options of a verb from its function's signature, the command line and a YAML file; a misspelt name is refused."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from anomaly.errors import UsageError
from anomaly.registry import MODELS, detector_class
from anomaly.system.suggestions import nearest


def parse(verb: str, function: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the options of a verb.

    A function with the parameters `detector` and `model` takes the options of the detector's constructor as
    `--model.NAME`.

    Args:
        verb: for the usage text.
        function: whose keyword arguments are the options.
        arguments: of the command line after the verb.

    Returns:
        Its keyword arguments.

    Raises:
        UsageError: a name that is not an option, written in full, or a value of another type.
        SystemExit: after `--help`.
    """
    parser = ArgumentParser(prog=f"anomaly {verb}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with these options, see configs/")
    parameters = inspect.signature(function).parameters
    has_detector = "detector" in parameters
    skip: set[str | int] = {"model"} if has_detector else set()
    optional = {  # words of the command line that may be left out
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is not parameter.empty
    }
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skip | set(optional))
    for name in optional:
        parser.add_argument(name, nargs="?", type=str, help=_told(function, name))
    file = _read_yaml(_value_of("config", arguments))
    if has_detector:
        default = parameters["detector"].default
        named = str(file.get("detector", default))
        if ":" in named:
            raise UsageError(
                f"detector {named!r} in a YAML file: a class to import is named on the command line only, by --detector"
            )
        name = _value_of("detector", arguments) or named
        if name in MODELS or name != default:  # the demo's `best` chooses later and takes no options of its own
            parser.add_class_arguments(detector_class(name), "model", as_group=False)
    if "--help" in arguments or "-h" in arguments:
        print(re.sub(r"--[a-z0-9_.]+", lambda found: found[0].replace("_", "-"), parser.format_help()))
        raise SystemExit(0)
    arguments = _spelled(parser, arguments)
    _check_names(parser, arguments, file)
    try:
        values = parser.parse_args(arguments)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise UsageError(f"{verb}: {error}") from error
    found: dict[str, Any] = parser.instantiate_classes(values).as_dict()
    found.pop("config", None)
    return found | {name: default for name, default in optional.items() if found[name] is None}


def _told(function: Callable[..., Any], name: str) -> str:
    """What the docstring of a function says of a parameter."""
    found = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def _spelled(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Options as the parser spells them.

    `--max-pixels` becomes `--max_pixels`, a bare `--resume` becomes `--resume=true`, and `--interpolate A B`, an option of
    two values, becomes `--interpolate=["A", "B"]`. Where a verb takes a list first, as in `A B --port 1`, what is no option
    and no option's value becomes `["A", "B"]`; where it takes a word that may be left out, such words come first.
    """
    hints = {name: getattr(action, "_typehint", None) for action in parser._actions for name in action.option_strings}
    takes_list = any(
        get_origin(getattr(action, "_typehint", None)) is list
        for action in parser._actions
        if not action.option_strings
    )
    gathers = takes_list or any(action.nargs == "?" and not action.option_strings for action in parser._actions)
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
            argument = name.replace("-", "_").replace("__", "--", 1) + equals + value
            hint = hints.get(argument)
            if hint is bool and (not rest or rest[0] not in ("true", "false")):
                argument += "=true"
            elif get_origin(hint) is tuple:
                num = len(get_args(hint))
                values, rest = rest[:num], rest[num:]
                if len(values) < num or any(value.startswith("--") for value in values):
                    raise UsageError(f"{name} takes {num} values, as {name} A B")
                argument += "=" + json.dumps(values)
            elif gathers and "=" not in argument and rest:
                argument += "=" + rest.pop(0)
        spelled.append(argument)
    return [*([json.dumps(first)] if first and takes_list else first), *spelled]


def _value_of(option: str, arguments: Sequence[str]) -> str:
    """The value of `--option` on the command line, empty where it is not given.

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
    return found[0] if found else ""


def _read_yaml(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is no YAML file: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} holds no options: write NAME: VALUE, one a line")
    return content


def _check_names(parser: ArgumentParser, arguments: Sequence[str], file: dict[str, Any]) -> None:
    """Refuse an option or a key that is not written as it is, before the parser guesses."""
    options = [name for action in parser._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in options:
            raise UsageError(f"no option {name}; nearest: {nearest(name, options).replace('_', '-')}")
    keys = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
    for key in _flat(file):
        if key not in keys:
            raise UsageError(f"no option {key!r} (in the YAML file); nearest: {nearest(key, keys)!r}")


def _flat(content: dict[str, Any]) -> list[str]:
    """Keys of a YAML file, those of the detector as `model.NAME`."""
    model = content.get("model")
    nested = [f"model.{key}" for key in model] if isinstance(model, dict) else []
    return [key for key in content if not (key == "model" and nested)] + nested
