"""The command `anomaly`: verbs are plain functions, imported only when called, with options from their signatures."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from anomaly.errors import AnomalyError, UsageError

VERBS: dict[str, tuple[str, str]] = {
    "demo": (
        "anomaly.commands.demo:demo",
        "from a folder (or synthetic parts) to a certified model, scores and a report",
    ),
    "inspect": ("anomaly.commands.inspect:inspect", "what a folder of images holds, and what is wrong with it"),
    "fit": ("anomaly.training.fit:fit", "train a detector on good images and calibrate it"),
    "export": ("anomaly.export.detector:export", "turn a run folder into one .onnx file"),
    "verify": ("anomaly.export.parity:verify", "prove that the .onnx file gives what the trained model gives"),
    "calibrate": (
        "anomaly.recalibration.recalibrate:calibrate",
        "a new guarantee for an .onnx file from new good images",
    ),
    "test": ("anomaly.evaluation.evaluate:test", "figures of a model on labelled images"),
    "benchmark": (
        "anomaly.benchmark.run:benchmark",
        "detectors × categories × seeds from a YAML file, and their table",
    ),
    "sample": (
        "anomaly.generation.sample:sample",
        "draw images from a sampler, or repair, morph and inpaint given ones",
    ),
    "synthesize": ("anomaly.generation.defects:synthesize", "defects with exact masks drawn onto good images"),
    "score": ("anomaly.commands.score:score", "verdicts for a folder, a glob, a list or standard input of images"),
    "serve": (
        "anomaly.commands.serve:serve",
        "models over HTTP: the Open Inference Protocol v2, and verdicts for images",
    ),
    "review": (
        "anomaly.commands.review:review",
        "a finished run in the browser: look at it, and mark what was judged wrongly",
    ),
    "bench": ("anomaly.scoring.profile:bench", "how fast a model scores here, and its memory"),
    "replay": ("anomaly.runs.replay:replay", "check a finished run's files and score its images again"),
    "diff": ("anomaly.runs.diff:diff", "which verdicts change between two runs over the same images"),
    "deploy": ("anomaly.deployment.triton:deploy", "a model as an entry of a Triton model repository"),
    "offline": (
        "anomaly.deployment.bundle:offline",
        "a folder that installs, fits and scores on a machine without a network",
    ),
    "merge": ("anomaly.runs.merge:merge", "the shards of a run as one"),
}
"""Verb -> where its function lives, and one line of help; literal, so that help imports nothing"""

EXTRA_OF = {
    "onnxruntime": "serve-cpu",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "anomalib": "bench",
}
"""Package -> the extra that brings it, where that is not `train`"""


def main() -> None:
    """Run the command line and exit with its code."""
    # names of files need not be text, and a console need not know every sign
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `score` has its own beside these.
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
        print("anomaly: interrupted; what was written stays", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(importlib.import_module("anomaly").__version__)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        from anomaly.system.suggestions import nearest

        raise UsageError(f"no verb {verb!r}; nearest: {nearest(verb, VERBS)!r}; all: {', '.join(VERBS)}")
    module, _, name = VERBS[verb][0].partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        from anomaly.commands.parser import parse

        result = function(**parse(verb, function, arguments[1:]))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = EXTRA_OF.get(missing, "train")
        raise UsageError(
            f"`anomaly {verb}` needs {missing}, which this install has not: pip install anomaly[{extra}]"
        ) from error
    return result if isinstance(result, int) else 0


def _help() -> str:
    lines = ["usage: anomaly VERB [OPTIONS]      (anomaly VERB --help lists the options)", ""]
    lines += [f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(lines)
