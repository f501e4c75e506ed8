"""A Lightning checkpoint of anomalib, read without running anything of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from edgead.features.backbones import load_timm
from edgead.features.folding import Backbone, fold_backbone
from edgead.importing.model import ONLY_TWO, PADIM, PATCHCORE, AnomalibModel, Decision, Preparation, blur_line
from edgead.runtime.errors import BackendUnavailable, ConfigError, DataError

_BACKBONE = "model.feature_extractor.feature_extractor."
_BLUR = "model.anomaly_map_generator.blur.kernel"
_AGAIN = "give the checkpoint (.ckpt) that anomalib 2.7 writes while it fits, or its ONNX export"
# anomalib names the precision of PatchCore by an enum of its own. What stands for it here makes text of its one
# argument, so no code of the file runs, and anomalib need not be there.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(str, "anomalib.PrecisionType")]
# Older releases let a crafted file through, weights only or not (CVE-2026-24747).
_SAFE_TORCH = (2, 10)


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class _Hyperparameters(_Lenient):
    """What anomalib's constructors were given."""

    backbone: str
    layers: list[str | int] = Field(min_length=1, max_length=16)
    num_neighbors: int | None = Field(default=None, ge=1, le=10_000)


class _PostProcessor(_Lenient):
    enable_normalization: bool = True
    enable_thresholding: bool = True
    enable_threshold_matching: bool = True
    image_sensitivity: float | None = 0.5


class _Step(_Lenient):
    """One transform: torchvision's class and the arguments of its constructor."""

    class_path: str
    init_args: dict[str, Any] = {}


class _Resize(_Lenient):
    size: list[int] | int
    interpolation: str = "bilinear"
    antialias: bool | None = True


class _Crop(_Lenient):
    size: list[int] | int


class _Normalize(_Lenient):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_checkpoint(path: Path) -> AnomalibModel:
    """Read a checkpoint of anomalib's PatchCore or PaDiM.

    Raises:
        DataError: no such file, a damaged one, one with other objects than tensors and plain values, or another model.
        ConfigError: a model that was set up as edgead cannot repeat it.
        BackendUnavailable: a torch that is not safe to open it with.
    """
    content = _load(path)
    state = {name: value for name, value in content["state_dict"].items() if isinstance(value, Tensor)}
    kind = _kind(state, path)
    try:
        given = _Hyperparameters.model_validate(content.get("hyper_parameters"))
        post = _PostProcessor.model_validate(content.get("anomalib_post_processor_config") or {})
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "hyper_parameters"
        raise DataError(f"{path} does not say '{where}' of its model as anomalib 2.7 does; {_AGAIN}") from error
    if kind == PATCHCORE and given.num_neighbors is None:
        raise DataError(f"{path} is no PatchCore of anomalib (no num_neighbors); {ONLY_TWO}")
    config = content.get("anomalib_pre_processor_config")
    preparation = read_preparation(config.get("transform") if isinstance(config, dict) else None, str(path))
    backbone, layers = _backbone(given, state, preparation, path)
    enabled = content.get("anomalib_components_enabled")
    judged = post.enable_thresholding and not (isinstance(enabled, dict) and enabled.get("post_processor") is False)
    half = any(state[name].dtype == torch.float16 for name in _needed(kind))
    return AnomalibModel(
        kind=kind,
        preparation=preparation,
        backbone=backbone,
        backbone_name=given.backbone,
        layers=layers,
        tensors={name.rpartition(".")[2]: _plain(state[name]) for name in _needed(kind)},
        neighbours=given.num_neighbors or 1,
        blur=blur_line(state.get(_BLUR)),
        decision=_decision(state, post, judged),
        about={"file": "checkpoint", "precision": "float16" if half else "float32"},
    )


def _load(path: Path) -> Mapping[str, Any]:
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < _SAFE_TORCH:
        raise BackendUnavailable(
            f"torch {torch.__version__} cannot open a checkpoint of others safely; run: pip install 'torch>=2.10'"
        )
    if not path.is_file():
        raise DataError(f"{path} is no file; {_AGAIN}")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", str(error))
        if "weights" in str(error).lower() and found is not None:
            raise DataError(
                f"{path} holds more than weights ({found[1]}), which could run code, and was not loaded; {_AGAIN}"
            ) from error
        raise DataError(f"{path} is damaged or no checkpoint; {_AGAIN}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DataError(f"{path} is no Lightning checkpoint (no state_dict); {_AGAIN}")
    return content


def _needed(kind: str) -> tuple[str, ...]:
    if kind == PATCHCORE:
        return ("model.memory_bank",)
    return ("model.idx", "model.gaussian.mean", "model.gaussian.inv_covariance")


def _kind(state: Mapping[str, Tensor], path: Path) -> str:
    """Tell the models apart by what they hold; Lightning does not name the class."""
    if any(name.startswith(_BACKBONE) for name in state):
        for kind in (PATCHCORE, PADIM):
            if all(name in state for name in _needed(kind)):
                if any(not state[name].numel() for name in _needed(kind)):
                    raise DataError(f"{path} was saved before the model was fitted; fit it, and give that checkpoint")
                return kind
    raise DataError(f"{path} holds another model than anomalib's PatchCore or PaDiM; {ONLY_TWO}")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor


def read_preparation(transform: object, source: str) -> Preparation:
    """Read anomalib's description of its transforms.

    Raises:
        DataError: there is none that says it.
        ConfigError: it does something that edgead does not.
    """
    if transform is None:
        raise DataError(
            f"{source} does not say how images are prepared, as anomalib 2.7 writes it; load it in anomalib 2.7 with "
            "its pre-processor and save it again, or give its ONNX export"
        )
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        for step in _steps(transform):
            name = step.class_path.rpartition(".")[2]
            if name == "Resize" and size is None:
                size = _resized(_Resize.model_validate(step.init_args), source)
            elif name == "CenterCrop" and size is not None and crop is None:
                crop = _pair(_Crop.model_validate(step.init_args).size)
            elif name == "Normalize" and (mean, std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
                normal = _Normalize.model_validate(step.init_args)
                mean, std = normal.mean, normal.std
            else:
                raise ConfigError(
                    f"{source} prepares images with {name}, which edgead cannot repeat here; it knows one Resize, then "
                    "CenterCrop and Normalize"
                )
    except ValidationError as error:
        raise DataError(f"{source} describes its transforms in a way that anomalib 2.7 does not; {_AGAIN}") from error
    if size is None:
        raise ConfigError(f"{source} does not resize images, so the network has no size; fit it with a Resize")
    return check_preparation(Preparation(*size, crop, mean, std), source)


def check_preparation(preparation: Preparation, source: str) -> Preparation:
    """Return it; raises `ConfigError` where a size or number of it cannot be."""
    size, inner = (preparation.height, preparation.width), preparation.inner
    if not all(32 <= side <= 2048 for side in size) or any(a > b or a < 32 for a, b in zip(inner, size, strict=True)):
        raise ConfigError(
            f"{source} is for images of {size}, cropped to {inner}; edgead takes 32 to 2048 pixels a side"
        )
    if not all(value > 0 for value in preparation.std):
        raise ConfigError(f"{source} divides pixels by {preparation.std}; standard deviations are above 0")
    return preparation


def _steps(transform: object) -> Iterator[_Step]:
    step = _Step.model_validate(transform)
    if step.class_path.rpartition(".")[2] != "Compose":
        yield step
        return
    inner = step.init_args.get("transforms")
    for one in inner if isinstance(inner, list) else [inner]:
        yield from _steps(one)


def _resized(resize: _Resize, source: str) -> tuple[int, int]:
    if resize.interpolation != "bilinear" or resize.antialias is False:
        how = resize.interpolation if resize.interpolation != "bilinear" else "bilinear without antialiasing"
        raise ConfigError(
            f"{source} was fitted on images resized {how}; edgead resizes bilinear with antialiasing only"
        )
    if isinstance(resize.size, int) or len(resize.size) != 2:
        raise ConfigError(
            f"{source} resizes one side of an image and keeps its shape, so the network's size is open; fit it with "
            "Resize((height, width))"
        )
    return _pair(resize.size)


def _pair(size: list[int] | int) -> tuple[int, int]:
    both = [size, size] if isinstance(size, int) else size
    return both[0], both[-1]


def _backbone(
    given: _Hyperparameters, state: Mapping[str, Tensor], preparation: Preparation, path: Path
) -> tuple[Backbone, tuple[str, ...]]:
    """Rebuild timm's network with the checkpoint's weights, and fold it."""
    timm = load_timm()
    name = given.backbone
    if name.split(".")[0] not in timm.list_models():
        raise ConfigError(f"{path} has the backbone '{name}', which timm {timm.__version__} does not have")
    try:
        known = [one["module"] for one in timm.create_model(name, features_only=True).feature_info.info]
        # Whatever order the layers are named in, anomalib's features come in the network's.
        indices = sorted(layer if isinstance(layer, int) else known.index(layer) for layer in given.layers)
        network = timm.create_model(name, features_only=True, out_indices=indices)
    except Exception as error:
        raise ConfigError(
            f"{path} takes features from {', '.join(map(str, given.layers))} of '{name}', which is no convolutional "
            f"network of timm {timm.__version__} with such layers"
        ) from error
    weights = {key.removeprefix(_BACKBONE): _plain(value) for key, value in state.items() if key.startswith(_BACKBONE)}
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise DataError(f"{path} holds other weights than those of '{name}' in timm {timm.__version__}") from error
    mean, std = ([255.0 * value for value in values] for values in (preparation.mean, preparation.std))
    folded = fold_backbone(network, range(len(indices)), preparation.inner, mean, std)
    return folded, tuple(known[index] for index in indices)


def _decision(state: Mapping[str, Tensor], post: _PostProcessor, judged: bool) -> Decision:
    def number(name: str) -> float:
        value = state.get(f"post_processor.{name}")
        return float(value) if judged and value is not None and value.numel() == 1 else float("nan")

    threshold, low, high = number("_image_threshold"), number("image_min"), number("image_max")
    if math.isnan(threshold) and post.enable_threshold_matching:
        threshold = number("_pixel_threshold")
    if math.isnan(threshold):
        threshold = (low + high) / 2
    sensitivity = 0.5 if post.image_sensitivity is None else post.image_sensitivity
    return Decision(threshold, high - low, sensitivity, post.enable_normalization or not judged)
