"""anomalib's models as detectors: training with random weights, saved state, export, and comparison with anomalib."""

from __future__ import annotations

import builtins
import copy
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from safetensors.torch import save_file
from torch import Tensor

from anomaly.detectors.anomalib import adapter as anomalib_model
from anomaly.detectors.anomalib.adapter import AnomalibModel
from anomaly.detectors.anomalib.build import NOT_OPTIONS, default_normalisation, model_class
from anomaly.errors import UsageError, WeightsError
from anomaly.export.detector import export_graph
from anomaly.export.model_file import export_model
from anomaly.inference.difference import relative_difference
from anomaly.inference.scorer import OnnxScorer, score_bytes
from anomaly.testing.toy_training import as_batch, train_on
from anomaly.training.fit import fit_model
from anomaly.training.fitted_model import load_fitted_model
from anomaly.training.torch_scorer import TorchScorer
from tests.plates import draw_part, draw_scratch

pytest.importorskip("anomalib")

CONFIGS = Path(__file__).resolve().parents[2] / "configs/detectors"
RESNET = {"backbone": "resnet18"}
CASES: dict[str, dict[str, Any]] = {
    "Cfa": {"options": RESNET, "inner_epochs": 1},
    "Cflow": {"options": RESNET | {"layers": ["layer1"], "coupling_blocks": 2}, "inner_epochs": 1},
    "Dfkde": {"options": {"layers": ["layer1"], "n_pca_components": 4}},
    "Dfm": {"options": RESNET | {"layer": "layer2", "pooling_kernel_size": 8}},
    "Fastflow": {"options": {"flow_steps": 2}},
    "Fre": {"options": RESNET | {"input_dim": 1024, "latent_dim": 20}},
    "Ganomaly": {"options": {"n_features": 16, "latent_vec_size": 16}},
    "MHPatchcore": {"options": RESNET},
    "Padim": {"options": {"n_features": 20}},
    "Patchcore": {"options": RESNET},
    "ReverseDistillation": {"options": RESNET, "inner_epochs": 1},
    "Stfpm": {},
}
"""Options of each model beside `SMALL`; the other models are too large or need weights (benchmarks/anomalib_export)"""
SMALL: dict[str, Any] = {"size": 64, "weights": "none", "inner_epochs": 2, "batch_size": 8}
EXPORTED = ("Cflow", "Dfkde", "Patchcore")
"""Models with a new inference; only these are exported, because an export takes many seconds"""


def build(model: str, **others: Any) -> AnomalibModel:
    torch.manual_seed(0)
    return AnomalibModel(**(SMALL | CASES.get(model, {}) | {"model": model} | others))


def parts(num: int, *, seed: int) -> Tensor:
    return torch.from_numpy(np.stack([draw_part(seed + n) for n in range(num)]))


@pytest.fixture(scope="module")
def fitted() -> dict[str, AnomalibModel]:
    """Fitted and calibrated models, one training each."""
    return {}


def fit_small(model: str, fitted: dict[str, AnomalibModel]) -> AnomalibModel:
    if model not in fitted:
        detector = build(model)
        train_on(detector, parts(24, seed=0))
        detector.calibrate([as_batch(parts(20, seed=100), name="")], alpha=0.1, guarantee="expected")
        fitted[model] = detector
    return copy.deepcopy(fitted[model])


@pytest.mark.parametrize("model", CASES)
@torch.no_grad()
def test_scores_are_independent_and_restored_from_the_state(model: str, fitted: dict[str, AnomalibModel]) -> None:
    detector = fit_small(model, fitted)
    image = parts(5, seed=200)
    result = detector(image)
    assert result.score.shape == (5,)
    assert result.anomaly_map.shape == (5, 64, 64)
    assert result.score.dtype == result.anomaly_map.dtype == torch.float32
    assert result.score.std() > 0
    for n in range(5):
        single = detector(image[n : n + 1])
        assert torch.allclose(single.score[0], result.score[n], rtol=1e-4, atol=1e-3)
        assert torch.allclose(single.anomaly_map[0], result.anomaly_map[n], rtol=1e-4, atol=1e-3)
    torch.manual_seed(99)
    again = AnomalibModel(**json.loads(json.dumps(dict(detector.hparams)))).eval()
    again.load_state_dict(load_tensors(save_tensors(detector.state_dict())))
    for one, two in zip(again(image), result, strict=True):
        assert torch.equal(one, two)
    assert not any(p.requires_grad for p in detector.parameters())
    assert not any(part.training for part in detector.train().network.modules())


@pytest.mark.parametrize("model", EXPORTED)
@torch.no_grad()
def test_exported_graph_gives_equal_scores_and_maps(model: str, fitted: dict[str, AnomalibModel]) -> None:
    detector = fit_small(model, fitted)
    graph = export_graph(detector).SerializeToString()
    noise = torch.randint(0, 256, (2, 131, 57, 3), dtype=torch.uint8)
    scratch = torch.from_numpy(draw_scratch(draw_part(7), 7)[0])[None]
    for image in (parts(3, seed=300), scratch, noise, torch.zeros(2, 72, 88, 3, dtype=torch.uint8)):
        trained, exported = detector(image), score_bytes(graph, image.numpy())
        assert relative_difference(trained.score.numpy(), exported.score).max() <= 1e-3
        assert relative_difference(trained.anomaly_map.numpy(), exported.anomaly_map).max() <= 1e-3


@pytest.mark.parametrize("model", ["Cflow", "MHPatchcore", "Patchcore"])
@torch.no_grad()
def test_new_inference_equals_anomalib_for_one_image(model: str, fitted: dict[str, AnomalibModel]) -> None:
    detector = fit_small(model, fitted)
    for image in (parts(1, seed=400), 255 - parts(1, seed=401)):
        x = detector.preprocess(image).contiguous()
        ours = detector.anomaly(x)
        theirs = detector.network(x)
        assert torch.allclose(ours.score, theirs.pred_score.flatten().float(), rtol=1e-3, atol=1e-5)
        theirs_map = theirs.anomaly_map.reshape(ours.anomaly_map.shape).float()
        assert torch.allclose(ours.anomaly_map, theirs_map, rtol=1e-3, atol=1e-3 * float(theirs_map.max()))


@torch.no_grad()
def test_density_has_the_ranks_of_anomalib_without_underflow(fitted: dict[str, AnomalibModel]) -> None:
    detector = fit_small("Dfkde", fitted)
    x = detector.preprocess(torch.cat([parts(12, seed=500), 255 - parts(4, seed=500)])).contiguous()
    ours, theirs = detector.anomaly(x).score, detector.network(x).pred_score
    apart = (theirs[:, None] - theirs[None, :]) > 1e-5
    assert apart.sum() > 20
    assert (ours[:, None] > ours[None, :])[apart].all()
    assert (theirs[-4:] == 1).all()  # its density is 0 there
    assert len(ours[-4:].unique()) == 4


@torch.no_grad()
def test_memory_bank_has_no_duplicate_rows(fitted: dict[str, AnomalibModel]) -> None:
    network = fit_small("Patchcore", fitted).network
    bank: Any = network.memory_bank
    assert bank.shape == (int(0.1 * 24 * 64), 384)
    assert torch.cdist(bank, bank).fill_diagonal_(1).min() > 1e-4  # a coreset has no duplicate row


def test_fit_calibrates_saves_and_exports(category: Path, tmp_path: Path) -> None:
    model = SMALL | {"model": "Padim", "options": {"n_features": 20}}
    run = fit_model(
        category, out=tmp_path / "run", detector="anomaly.detectors.anomalib.adapter:AnomalibModel", options=model
    ).folder
    fitted = load_fitted_model(run)
    detector, description = fitted.detector, fitted.description
    assert description.config["options"] == {"n_features": 20}
    assert description.provenance == {"weights": "none (random)"}
    assert isinstance(detector, AnomalibModel)
    assert detector.network.gaussian.inv_covariance.shape == (256, 20, 20)  # type: ignore[union-attr]
    scorer = OnnxScorer(export_model(run), device="cpu", num_threads=1)
    good = np.stack([draw_part(1000 + n) for n in range(4)])
    defect = np.stack([draw_scratch(image, n)[0] for n, image in enumerate(good)])
    assert scorer.score(defect).score.min() > max(1.0, float(scorer.score(good).score.max()))
    trained = TorchScorer(run).score(defect)
    for one, two in zip(trained, scorer.score(defect), strict=True):
        assert relative_difference(one, two).max() <= 1e-4


def test_pixels_outside_the_region_change_neither_training_nor_scores() -> None:
    mask = torch.zeros(72, 88, dtype=torch.bool)
    mask[8:50, 10:60] = True
    image = parts(8, seed=0)
    other = torch.where(mask[None, :, :, None], image, torch.randint(0, 256, image.shape, dtype=torch.uint8))
    result = []
    for images in (image, other):
        detector = build("Padim")
        detector.preprocess.set_roi(mask)
        train_on(detector, images)
        with torch.no_grad():
            result.append(detector(images))
    assert torch.equal(result[0].score, result[1].score)
    assert torch.equal(result[0].anomaly_map, result[1].anomaly_map)
    outside = result[0].anomaly_map[:, ~detector.preprocess.roi]
    assert torch.equal(outside, result[0].anomaly_map.amin(dim=(1, 2))[:, None].expand_as(outside))


@torch.no_grad()
def test_module_fitted_by_anomalib_is_adapted() -> None:
    from anomalib.models import Stfpm
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms import v2

    network = build("Stfpm").network  # random weights
    normal = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    module = copy.copy(Stfpm.__new__(Stfpm))
    torch.nn.Module.__init__(module)
    module.model = network
    module._set_hparams({"backbone": "resnet18", "layers": ("layer1", "layer2", "layer3"), "pre_trained": True})
    module.pre_processor = PreProcessor(transform=v2.Compose([v2.Resize((64, 64)), normal]))
    detector = AnomalibModel.adapt(module)
    x = module.pre_processor.transform(parts(2, seed=0).permute(0, 3, 1, 2).float() / 255)
    theirs = network(x)
    ours = detector(parts(2, seed=0))
    assert torch.allclose(ours.score, theirs.pred_score.flatten(), rtol=1e-4)
    assert torch.allclose(ours.anomaly_map, theirs.anomaly_map[:, 0], rtol=1e-3, atol=1e-6)
    assert detector.hparams["options"] == {"backbone": "resnet18", "layers": ["layer1", "layer2", "layer3"]}
    with pytest.raises(UsageError, match="is already trained"):
        detector.on_fit_start()
    for others in ([], [v2.CenterCrop(64), normal]):
        module.pre_processor = PreProcessor(transform=v2.Compose([v2.Resize((80, 80)), *others]))
        with pytest.raises(UsageError, match="only a resize to a square and the default normalisation"):
            AnomalibModel.adapt(module)


def test_local_weights_are_loaded_into_anomalib_networks(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = build("Padim").network.feature_extractor.feature_extractor.state_dict()  # type: ignore[union-attr,operator]
    save_file(
        {key: torch.randn_like(value.float()) for key, value in state.items()}, tmp_path / "resnet18.x.safetensors"
    )
    for model, part in (("Padim", "feature_extractor"), ("Stfpm", "teacher_model"), ("Cfa", "feature_extractor")):
        detector = build(model, weights=str(tmp_path))
        assert detector.provenance["weights"] == "resnet18.x.safetensors"
        learned = load_tensors((tmp_path / "resnet18.x.safetensors").read_bytes())["layer2.0.conv1.weight"]
        found = [
            v for k, v in detector.network.state_dict().items() if k.endswith("layer2.0.conv1.weight") and part in k
        ]
        assert len(found) == 1
        assert torch.equal(found[0], learned)
    with pytest.raises(WeightsError, match=r"tensors are missing"):
        build("Dfkde", options={"layers": ["layer4"]}, weights=str(tmp_path))
    with pytest.raises(WeightsError, match="no weights for torchvision's 'vgg19_bn'"):
        build("Cfa", options={"backbone": "vgg19_bn"}, weights=str(tmp_path))


def test_interrupted_training_restarts(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(out: str, *, resume: bool) -> AnomalibModel:
        model = SMALL | {"model": "Dfm"} | CASES["Dfm"]
        name = "anomaly.detectors.anomalib.adapter:AnomalibModel"
        detector = load_fitted_model(
            fit_model(category, out=tmp_path / out, detector=name, options=model, resume=resume).folder
        ).detector
        assert isinstance(detector, AnomalibModel)
        return detector

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(anomalib_model, "_train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            start("one", resume=False)
    resumed, whole = start("one", resume=True).state_dict(), start("two", resume=False).state_dict()
    assert resumed["network.pca_model.mean"].numel() > 0
    for key, value in whole.items():
        assert torch.allclose(value.float(), resumed[key].float(), rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "Patchcor"}, "no image model 'Patchcor'; nearest: 'Patchcore'"),
        ({"model": "Padim", "options": {"n_feature": 2}}, "no option 'n_feature'; nearest: 'n_features'"),
        ({"model": "Padim", "options": {"evaluator": True}}, "no option 'evaluator'"),
        ({"model": "Padim", "options": {"n_features": 4000}}, "cannot be built for size 64 .* found 4000"),
        ({"model": "Uflow", "options": {"backbone": "vgg"}}, "cannot be built"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AnomalibModel(**(SMALL | options))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("anomalib_*.yaml")), ids=lambda p: p.stem)
def test_configs_use_valid_options(path: Path) -> None:
    model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    assert set(model) <= set(inspect.signature(AnomalibModel).parameters)
    found = model_class(model["model"])
    assert set(model["options"]) <= set(inspect.signature(found).parameters) - set(NOT_OPTIONS)
    assert set(default_normalisation(found)) <= {(0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.0,) * 3, (1.0,) * 3}


def test_missing_folder_of_additional_images_raises(tmp_path: Path) -> None:
    detector = build("EfficientAd", options={"imagenet_dir": str(tmp_path)})
    with pytest.raises(UsageError, match=r"trains with everyday images.*: set options.imagenet_dir"):
        detector.on_fit_start()


def test_untrained_model_raises() -> None:
    with pytest.raises(UsageError, match="Patchcore is not trained: fit it first"):
        build("Patchcore")(parts(1, seed=0))


def test_missing_anomalib_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "anomalib"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def absent(name: str, *rest: Any, **others: Any) -> Any:
        if name.partition(".")[0] == "anomalib":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setitem(sys.modules, "anomalib", None)
    with pytest.raises(UsageError, match=r"not installed .*: pip install anomaly\[bench\]"):
        build("Padim")
