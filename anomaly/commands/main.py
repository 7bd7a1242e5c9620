"""The command `anomaly`: each verb is a function, imported when it is called, with options from its signature."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError, UsageError

VERBS = {
    "demo": "run all steps, from a folder or synthetic parts to a certified model and a report",
    "inspect": "count and check the images of a folder before training",
    "fit": "train a detector on good images and calibrate it",
    "export": "write a fitted model as one .onnx file",
    "verify": "compare the .onnx file with the fitted model",
    "extend": "add good images to the memory bank of an .onnx file, and calibrate it again",
    "calibrate": "set a new threshold of an .onnx file, from new good images or labels",
    "evaluate": "measure a model on labelled images",
    "benchmark": "measure detectors × categories × seeds of a YAML file, and write a table",
    "sample": "draw images from a sampler, or repair, morph and inpaint given images",
    "synthesize": "draw defects with exact masks onto good images",
    "score": "judge the images of a folder, a glob, a list or standard input",
    "serve": "serve models over HTTP, by the Open Inference Protocol v2 and for single images",
    "review": "view a finished run in the browser and label wrong verdicts",
    "profile": "measure speed and memory of a model on this machine",
    "replay": "check a finished run's files and score its images again",
    "diff": "list the verdicts that differ between two runs over the same images",
    "deploy": "write a model as an entry of a Triton model repository",
    "bundle": "make a folder that installs, fits and scores on a machine without a network",
    "merge": "join the shards of a run into one run",
}
"""Verb -> one line of help. The verb is a function of its name in `anomaly.commands.<verb>`; help imports none of them"""

RENAMED = {"test": "evaluate", "bench": "profile", "offline": "bundle"}
"""Verb of an earlier version -> its present name"""

LOADS_CLASSES = ("export", "verify")
"""Verbs that load a fitted model. Its package.module:Class, given to `fit`, may lie in the working folder"""

SYNONYMS = {"train": "fit", "predict": "score", "infer": "score", "help": "--help"}
"""Verb of other packages -> what it is called here"""

EXTRA_OF = {
    "onnxruntime": "serve-cpu",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "anomalib": "bench",
}
"""Package -> extra that installs it; any other package belongs to `train`"""


def main() -> None:
    """Run the command line and exit with its code."""
    # file names may be invalid text, and a console may miss characters
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `score` and `benchmark` add further codes.
    """
    try:
        return _run(list(arguments))
    except UsageError as error:
        print(f"anomaly: {error}", file=sys.stderr)
        return 2
    except AnomalyError as error:
        print(f"anomaly: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("anomaly: interrupted; the written files stay", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(importlib.import_module("anomaly").__version__)
        return 0
    verb = arguments[0]
    if verb in RENAMED:
        raise UsageError(f"the verb {verb!r} is now {RENAMED[verb]!r}: see `anomaly {RENAMED[verb]} --help`")
    if verb not in VERBS:
        from anomaly.system.suggestions import nearest

        raise UsageError(
            f"no verb {verb!r}; nearest: {SYNONYMS.get(verb) or nearest(verb, VERBS)!r}; all: {', '.join(VERBS)}"
        )
    try:
        module = importlib.import_module(f"anomaly.commands.{verb}")
        from anomaly.commands.parser import parse
        from anomaly.system.progress import show_progress

        function: Callable[..., Any] = getattr(module, verb)
        if verb in LOADS_CLASSES and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        with show_progress():
            result = function(**parse(verb, function, arguments[1:]))
            if hasattr(module, "show"):
                result = module.show(result)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = EXTRA_OF.get(missing, "train")
        raise UsageError(
            f"`anomaly {verb}` needs {missing}, which is not installed: pip install anomaly[{extra}]"
        ) from error
    return result if isinstance(result, int) else 0


def _help() -> str:
    lines = ["usage: anomaly VERB [OPTIONS]      (anomaly VERB --help lists the options)", ""]
    lines += [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join(lines)
