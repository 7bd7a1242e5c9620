from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anomaly
from anomaly.commands import main as cli
from anomaly.commands.calibrate import calibrate
from anomaly.commands.fit import fit
from anomaly.commands.help import help_text, options_of
from anomaly.commands.main import VERBS, run
from anomaly.commands.merge import merge
from anomaly.commands.parser import parse
from anomaly.commands.score import score
from anomaly.commands.serve import serve
from anomaly.commands.signature import signature_of
from anomaly.detectors.autoencoder import Autoencoder
from anomaly.errors import CalibrationError, UsageError
from anomaly.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERB_OF_FOLDER: dict[str, Callable[..., Any]] = {"detectors": fit, "samplers": fit}
OTHERS = {"benchmarks"}
"""Folders of files without options of a verb; other tests read them"""
HELP = "import sys; sys.argv = ['anomaly', '--help']; from anomaly.commands.main import main; main()"
SCORE = ["m.onnx", "images", "--out", "rows.csv"]
FIT = ["data", "--out", "run"]


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", HELP], capture_output=True, text=True, check=True
    )
    for verb in VERBS:
        assert f"\n  {verb} " in result.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "anomaly" in imported
    assert not imported & {"numpy", "cv2", "torch", "onnx", "onnxruntime", "pyarrow", "jsonargparse", "yaml", "rich"}


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert run(arguments) == 0
        assert capsys.readouterr().out.startswith("usage: anomaly VERB")
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{anomaly.__version__}\n"


def function_of(verb: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(f"anomaly.commands.{verb}"), verb)
    return function


def test_every_module_of_the_commands_is_a_verb() -> None:
    folder = Path(cli.__file__).parent
    assert {path.stem for path in folder.glob("[a-z]*.py")} - {
        "__init__",
        "help",
        "main",
        "parser",
        "signature",
    } == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_verb_has_a_text(verb: str) -> None:
    text = inspect.getdoc(function_of(verb)) or ""
    for parameter in inspect.signature(function_of(verb)).parameters:
        assert re.search(rf"^    {parameter}: ", text, flags=re.MULTILINE), f"{verb} does not document {parameter}"


@pytest.mark.parametrize("verb", VERBS)
def test_text_of_an_option_reads_alone(verb: str) -> None:
    """It starts with a noun: not with a preposition, a relative clause or a pronoun."""
    text = inspect.getdoc(function_of(verb)) or ""
    for parameter in inspect.signature(function_of(verb)).parameters:
        found = re.search(rf"^    {parameter}: (\S+)", text, flags=re.MULTILINE)
        assert found
        assert found[1].lower() not in {"of", "that", "which", "what", "it", "its", "for", "to", "in"}, (
            verb,
            parameter,
        )


@pytest.mark.parametrize("name", MODELS)
def test_help_of_fit_has_a_text_for_every_option_of_a_detector(name: str) -> None:
    if name == "anomalib" and importlib.util.find_spec("anomalib") is None:
        pytest.skip("needs anomalib")
    groups = options_of(signature_of(fit, detector=name))
    for option in groups[f"options of {name}"]:
        first = option.text.split()[0].lower()
        assert first not in {"of", "that", "which", "what", "it", "its", "how", "for", "to", "in"}, (name, option)
    text = help_text("fit", signature_of(fit, detector=name))
    assert "--model.batch-size N" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(("old", "new"), [("test", "evaluate"), ("bench", "profile"), ("offline", "bundle")])
def test_verb_of_an_earlier_version_names_the_new_verb(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([old, "model.onnx"]) == 2
    assert f"the verb {old!r} is now {new!r}: see `anomaly {new} --help`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["score", *SCORE, "--review-limit", "0.5"], "--review-limit is now --review-threshold"),
        (["fit", *FIT, "--group=a"], "--group is now --part-group"),
        (["fit", *FIT, "--promise", "bound"], "--promise is now --guarantee"),
    ],
)
def test_option_of_an_earlier_version_names_the_new_option(arguments: list[str], new: str) -> None:
    verb, *rest = arguments
    with pytest.raises(UsageError, match=new):
        parse(verb, function_of(verb), rest)


@pytest.mark.parametrize(("verb", "near"), [("scroe", "score"), ("calibrat", "calibrate"), ("Fit", "fit")])
def test_unknown_verb_names_the_nearest(verb: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb]) == 2
    output = capsys.readouterr().err
    assert f"no verb {verb!r}; nearest: {near!r}; all: demo, inspect" in output


@pytest.mark.parametrize(
    ("option", "near"),
    [("--alph", "--alpha"), ("--batch", "--batch-size"), ("--outt", "--out"), ("--max_pixel", "--max-pixels")],
)
def test_unknown_or_abbreviated_option_names_the_nearest(option: str, near: str) -> None:
    for arguments in ([*SCORE, option, "1"], [*SCORE, f"{option}=1"]):
        with pytest.raises(UsageError, match=rf"^no option {option}; nearest: {near}$"):
            parse("score", score, arguments)


@pytest.mark.parametrize("extra", [["-a", "1"], ["more"], ["--"]])
def test_surplus_arguments_are_refused(extra: list[str]) -> None:
    with pytest.raises(UsageError, match="score: "):
        parse("score", score, [*SCORE, *extra])


def test_missing_option_and_missing_value_are_refused() -> None:
    with pytest.raises(UsageError, match="'out' is required"):
        parse("fit", fit, FIT[:1])
    with pytest.raises(UsageError, match="--out: expected one argument"):
        parse("score", score, SCORE[:3])
    with pytest.raises(UsageError, match="images"):
        parse("score", score, ["m.onnx", "--out", "rows.csv"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--batch-size", "two"], "\"batch_size\":\n  Expected a <class 'int'>. Got value: two"),
        (["--batch-size", "1.5"], "batch_size"),
        (["--device", "gpu"], "'auto', 'cpu', 'cuda', 'tensorrt'"),
        (["--alpha", "few"], "Given value: few"),
        (["--threshold", "nan"], "Given value: nan"),
        (["--fail-on-defect=maybe"], "fail_on_defect"),
    ],
)
def test_value_of_another_type_is_refused_with_its_name(arguments: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)):
        parse("score", score, [*SCORE, *arguments])


def test_hyphen_and_underscore_are_the_same() -> None:
    for options in (["--max-pixels", "7", "--batch-size=3"], ["--max_pixels", "7", "--batch_size=3"]):
        found = parse("score", score, [*SCORE, *options])
        assert (found["max_pixels"], found["batch_size"]) == (7, 3)
    found = parse("fit", fit, [*FIT, "--detector", "autoencoder", "--model.learning-rate", "0.5"])
    assert found["model"]["learning_rate"] == 0.5


def test_values_keep_their_hyphens() -> None:
    found = parse("score", score, ["my-model.onnx", "-", "--out", "a-b/c-d.csv", "--threshold", "-0.5"])
    assert (found["model"], found["images"], found["out"]) == (Path("my-model.onnx"), "-", Path("a-b/c-d.csv"))
    assert found["threshold"] == -0.5


@pytest.mark.slow
def test_switch_needs_no_value() -> None:
    for options, expected in (
        ([], False), (["--fail-on-defect"], True), (["--fail-on-defect", "true"], True),
        (["--fail-on-defect=false"], False), (["--fail_on_defect", "false"], False),
    ):  # fmt: skip
        assert parse("score", score, [*SCORE, *options])["fail_on_defect"] is expected
    assert parse("score", score, ["--fail-on-defect", *SCORE])["fail_on_defect"] is True
    assert parse("score", score, ["m.onnx", "--fail-on-defect", "--out", "r.csv", "images"])["images"] == "images"


@pytest.mark.parametrize(
    "listed", [["--model.backbones", "a,b"], ["--model.backbones=a,b"], ["--model.backbones", "[a, b]"]]
)
def test_a_list_is_given_with_commas(listed: list[str]) -> None:
    found = parse("fit", fit, ["parts", "--out", "run", "--detector", "memory_bank", *listed, "--model.layers", "2,3"])
    assert list(found["model"]["backbones"]) == ["a", "b"]
    assert list(found["model"]["layers"]) == [2, 3]


def test_defaults_are_those_of_the_function() -> None:
    found = parse("calibrate", calibrate, ["m.onnx", "good"])
    assert found == {
        "model": Path("m.onnx"), "good": "good", "labels": None, "images": None, "out": None, "alpha": None,
        "guarantee": None, "device": "cpu", "max_pixels": 100_000_000, "part_group": None,
    }  # fmt: skip


@pytest.mark.slow
def test_optional_positional_argument_stands_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["m.onnx", "good", "--labels", "k"],
        ["m.onnx", "--labels", "k", "good"],
        ["--labels=k", "m.onnx", "good"],
    ):
        found = parse("calibrate", calibrate, arguments)
        assert (found["model"], found["good"], found["labels"]) == (Path("m.onnx"), "good", Path("k"))
    assert parse("calibrate", calibrate, ["m.onnx", "--labels", "k"])["good"] is None
    with pytest.raises(UsageError, match="more"):
        parse("calibrate", calibrate, ["m.onnx", "good", "more"])
    with pytest.raises(SystemExit):
        parse("calibrate", calibrate, ["--help"])
    assert "good images that were not used in training: a folder" in " ".join(capsys.readouterr().out.split())


def write(folder: Path, text: str) -> str:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_yaml_file_gives_options_and_the_command_line_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, "detector: autoencoder\nseed: 3\nalpha: 0.05\nmodel:\n  size: 128\n  width: 8\n")
    found = parse("fit", fit, [*FIT, "--config", file, "--seed", "4", "--model.width", "16"])
    latent = inspect.signature(Autoencoder).parameters["latent"].default
    assert (found["detector"], found["seed"], found["alpha"]) == ("autoencoder", 4, 0.05)
    assert (found["model"]["size"], found["model"]["width"], found["model"]["latent"]) == (128, 16, latent)
    assert "config" not in found
    whole = write(tmp_path, "data: data\nout: run\n")
    assert parse("fit", fit, [f"--config={whole}"])["data"] == Path("data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 3", r"no option 'sed' \(in the YAML file\); nearest: 'seed'"),
        ("detector: autoencoder\nmodel:\n  sise: 64", r"no option 'model.sise' .* nearest: 'model.size'"),
        ("detector: autoencoder\nmodel: {num_steps: 3}", r"no option 'model.num_steps'"),
        ("detector: fastlow", r"no detector or sampler 'fastlow'; nearest: 'fastflow'"),
        ("detector: [autoencoder]", r"no detector"),
        ("model: {width: 8}", r"no option 'model.width' for detector 'auto'.*name a detector"),
        ("seed: one", r"\"seed\":\n  Expected a <class 'int'>. Got value: one"),
        ("config: other.yaml", r"no option 'config'"),
        ("just words", r"holds no options"),
        ("a: [1", r"is not a YAML file"),
    ],
)
def test_wrong_yaml_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse("fit", fit, [*FIT, "--config", write(tmp_path, text)])


@pytest.mark.parametrize(
    "text",
    [
        "detector: parts.inspector:Spot",
        "detector: parts.inspector.Spot",
        "detector:\n  class_path: parts.inspector.Spot",
        "detector: autoencoder\nmodel:\n  class_path: parts.inspector.Spot",
        "detector: autoencoder\nmodel: parts.inspector.Spot",
    ],
)
def test_class_to_import_in_a_yaml_file_is_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_spot(tmp_path, monkeypatch)
    with pytest.raises(UsageError):
        parse("fit", fit, [*FIT, "--config", write(tmp_path, text)])
    assert "parts.inspector" not in sys.modules


def test_second_yaml_file_is_refused_unread(tmp_path: Path) -> None:
    file = write(tmp_path, "detector: parts.inspector:Spot")
    (tmp_path / "first.yaml").write_text("seed: 1")
    with pytest.raises(UsageError, match="--config is given 2 times"):
        parse("fit", fit, [*FIT, "--config", str(tmp_path / "first.yaml"), f"--config={file}"])


def test_unreadable_yaml_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"group: gr\xfcn\n")
    for name, message in (("none.yaml", "cannot be read: No such file"), ("latin.yaml", "is not a YAML file")):
        with pytest.raises(UsageError, match=message):
            parse("fit", fit, [*FIT, "--config", str(tmp_path / name)])


def write_spot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector outside this package, in the module parts.inspector on the path."""
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "inspector.py").write_text(
        "from anomaly.detectors.base import Detector\n"
        "class Spot(Detector):\n"
        "    '''Finds spots.\n\n    Args:\n        radius: of a spot, in pixels.\n    '''\n"
        "    def __init__(self, *, radius: int = 3) -> None: ...\n"
        "class Other: ...\n"
    )
    monkeypatch.syspath_prepend(folder)
    for name in ("parts", "parts.inspector"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_class_named_on_the_command_line_adds_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_spot(tmp_path, monkeypatch)
    found = parse("fit", fit, [*FIT, "--detector", "parts.inspector:Spot", "--model.radius", "5"])
    assert (found["detector"], found["model"]) == ("parts.inspector:Spot", {"radius": 5})
    for name, message in (
        ("parts.inspector:Other", "is neither a detector nor a sampler"),
        ("parts.inspector:None_such", "cannot be imported"),
        ("parts.none:Spot", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=message):
            parse("fit", fit, [*FIT, "--detector", name])


def test_misspelt_detector_is_refused_before_its_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no detector or sampler 'autoencodr'; nearest: 'autoencoder'"):
        parse("fit", fit, [*FIT, "--detector", "autoencodr", "--model.width", "8"])
    with pytest.raises(UsageError, match="--detector is given 2 times, autoencoder and fastflow"):
        parse("fit", fit, [*FIT, "--detector", "autoencoder", "--detector=fastflow"])


def test_help_of_a_verb_lists_its_options_with_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit) as stop:
            run(["score", option])
        assert stop.value.code == 0
        output = capsys.readouterr().out
        assert "--batch-size N" in output
        assert "images per inference" in output


def test_help_of_fit_lists_the_options_of_the_detector(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, present, absent in (
        (["fit", "--help"], "--budget-ms", "--model."),
        (["fit", "--detector", "fastflow", "--help"], "--model.num-steps", "--model.latent"),
        (["fit", "--detector", "autoencoder", "--help"], "--model.latent", "--model.num-steps"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(arguments)
        assert stop.value.code == 0
        output = capsys.readouterr().out
        assert present in output
        assert absent not in output
        assert not [name for name in re.findall(r"--[a-z][\w.-]*", output) if "_" in name]


SHIPPED = [path for path in sorted(CONFIGS.rglob("*.y*ml")) if path.parent.name not in OTHERS]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(CONFIGS).as_posix())
def test_shipped_yaml_file_parses_for_its_verb(path: Path) -> None:
    function = VERB_OF_FOLDER[path.parent.name]
    parse(function.__name__, function, [*FIT, "--config", str(path)])


def test_error_of_a_verb_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, code in ((UsageError, 2), (CalibrationError, 1), (KeyboardInterrupt, 130)):

        def fail(arguments: list[str], error: type[BaseException] = error) -> int:
            raise error("99 good images, 100 requested: give more")

        monkeypatch.setattr(cli, "_run", fail)
        assert run(["score"]) == code
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("anomaly: ")
        assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "extra"), [("starlette.routing", "serve"), ("onnxruntime", "serve-cpu"), ("torch", "train")]
)
def test_missing_package_is_named_with_its_extra(
    missing: str, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert run(["serve", "m.onnx"]) == 2
    assert f"needs {missing.partition('.')[0]}, " in (output := capsys.readouterr().err)
    assert f"pip install anomaly[{extra}]\n" in output


def test_leading_list_takes_positional_arguments() -> None:
    runs = [Path("a"), Path("b=c")]
    for arguments in (["a", "b=c", "--out", "d"], ["--out=d", "a", "b=c"], ["a", "--out", "d", "b=c"]):
        assert parse("merge", merge, arguments) == {"runs": runs, "out": Path("d")}
    found = parse("serve", serve, ["m.onnx", "--allow-anonymous", "n.onnx", "--port", "1"])
    assert (found["models"], found["allow_anonymous"], found["port"]) == (["m.onnx", "n.onnx"], True, 1)
    with pytest.raises(UsageError):
        parse("merge", merge, ["--out", "d"])
