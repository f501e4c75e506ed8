"""PatchCore and PaDiM written down as anomalib 2.7 computes them, and files as it writes them.

Plain and slow on purpose: every picture is resized and blurred at full size, and every distance is taken as it stands
in anomalib's sources. What edgead imports is compared with this; `test_importing_real.py` holds it against anomalib.
"""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.features.backbones import BackboneSpec, copy_weights

REAL = ("tf_efficientnet_lite0", ("blocks.2", "blocks.4"))
TINY = ("test_resnet", ("layer2", "layer3"))  # of random weights, and exported in a second
MEAN, STD = (0.48, 0.45, 0.4), (0.23, 0.22, 0.5)


@dataclass(frozen=True)
class Setup:
    """What a user of anomalib chose."""

    kind: str
    backbone: tuple[str, tuple[str, ...]] = REAL
    size: tuple[int, int] = (64, 96)
    crop: tuple[int, int] | None = None
    neighbours: int = 9
    sensitivity: float = 0.5


class Extractor(nn.Module):
    def __init__(self, backbone: tuple[str, tuple[str, ...]]) -> None:
        super().__init__()
        name, layers = backbone
        known = [one["module"] for one in timm.create_model(name, features_only=True).feature_info.info]
        torch.manual_seed(0)
        indices = [known.index(layer) for layer in layers]
        self.feature_extractor = timm.create_model(name, features_only=True, exportable=True, out_indices=indices)
        self.channels = sum(self.feature_extractor.feature_info.channels())
        if backbone == REAL:
            copy_weights(self.feature_extractor, BackboneSpec())

    def forward(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.feature_extractor(images)
        return found


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        offsets = torch.arange(-16, 17, dtype=torch.float32)
        line = torch.exp(-(offsets**2) / (2 * 4.0**2))
        kernel = torch.outer(line, line)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def forward(self, picture: Tensor) -> Tensor:
        return F.conv2d(F.pad(picture, (16, 16, 16, 16), mode="reflect"), self.kernel)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blur = Blur()


def distances(x: Tensor, y: Tensor) -> Tensor:
    squared = x.pow(2).sum(-1, keepdim=True) - 2 * x @ y.transpose(-2, -1) + y.pow(2).sum(-1)[..., None, :]
    return squared.clamp_min(0).sqrt()


class PatchCore(nn.Module):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.feature_extractor = Extractor(setup.backbone)
        self.anomaly_map_generator = Generator()
        self.neighbours = setup.neighbours
        self.register_buffer("memory_bank", torch.empty(0))

    def embed(self, images: Tensor) -> Tensor:
        """``(N, P, C)``."""
        first, *others = (F.avg_pool2d(tap, 3, 1, 1) for tap in self.feature_extractor(images))
        for tap in others:
            first = torch.cat((first, F.interpolate(tap, size=first.shape[-2:], mode="bilinear")), 1)
        return first.flatten(2).transpose(1, 2)

    def fit(self, images: Tensor) -> None:
        self.memory_bank = self.embed(images).flatten(0, 1)[::7].contiguous()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.embed(images)
        every = torch.arange(len(patches))
        scores, places = distances(patches, self.memory_bank).min(2)
        worst = scores.argmax(1)
        score = scores[every, worst]
        if self.neighbours > 1:
            sample = self.memory_bank[places[every, worst]]
            near = distances(sample, self.memory_bank).topk(self.neighbours, largest=False).indices
            around = distances(patches[every, worst][:, None], self.memory_bank[near])[:, 0]
            score = score * (1 - F.softmax(around, 1))[:, 0]
        grid = scores.reshape(len(patches), 1, images.shape[2] // 8, images.shape[3] // 8)
        return score, self.anomaly_map_generator.blur(F.interpolate(grid, size=images.shape[-2:]))


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("inv_covariance", torch.empty(0))


class Padim(nn.Module):
    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.feature_extractor = Extractor(setup.backbone)
        self.anomaly_map_generator = Generator()
        self.gaussian = Gaussian()
        self.register_buffer("idx", torch.randperm(self.feature_extractor.channels)[:12])

    def embed(self, images: Tensor) -> Tensor:
        """``(N, d, P)``."""
        first, *others = self.feature_extractor(images)
        for tap in others:
            first = torch.cat((first, F.interpolate(tap, size=first.shape[-2:], mode="nearest")), 1)
        return torch.index_select(first, 1, self.idx).flatten(2)

    def fit(self, images: Tensor) -> None:
        features = self.embed(images)
        mean = features.mean(0)
        located = (features - mean).permute(2, 0, 1)
        covariance = located.transpose(1, 2) @ located / (len(images) - 1) + 0.01001 * torch.eye(len(mean))
        self.gaussian.mean, self.gaussian.inv_covariance = mean, torch.linalg.inv(covariance)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        delta = (self.embed(images) - self.gaussian.mean).permute(2, 0, 1)
        squared = (torch.matmul(delta, self.gaussian.inv_covariance) * delta).sum(2).permute(1, 0)
        grid = squared.clamp(0).sqrt().reshape(len(images), 1, images.shape[2] // 8, images.shape[3] // 8)
        picture = self.anomaly_map_generator.blur(F.interpolate(grid, size=images.shape[-2:], mode="bilinear"))
        return picture.amax((-2, -1))[:, 0], picture


class Model(nn.Module):
    """What anomalib exports: preparation, network, and the normalised score with its label."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.model = PatchCore(setup) if setup.kind == "patchcore" else Padim(setup)
        self.register_buffer("threshold", torch.tensor(float("nan")))
        self.register_buffer("low", torch.tensor(float("nan")))
        self.register_buffer("high", torch.tensor(float("nan")))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Crop and normalise ``(N, 3, h, w)`` between 0 and 1 at network size."""
        height, width = self.setup.crop or self.setup.size
        top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
        inner = pixels[:, :, top : top + height, left : left + width]
        return (inner - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(STD)[:, None, None]

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return anomalib's raw score ``(N,)`` and picture ``(N, 1, h, w)`` for ``images (N, h, w, 3)`` uint8."""
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = self.model(self.prepare(images.permute(0, 3, 1, 2) / 255.0))
        return found

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sized = F.interpolate(pixels, size=self.setup.size, mode="bilinear", align_corners=False)
        score, picture = self.model(self.prepare(sized))
        score, picture = self.normalise(score), self.normalise(picture)
        return score, score > 1 - self.setup.sensitivity, picture

    def normalise(self, values: Tensor) -> Tensor:
        spread = self.high - self.low
        inside = ((values - self.threshold) / torch.where(spread == 0, 1.0, spread) + 0.5).clamp(0, 1)
        outside = torch.where(values > self.threshold, 1.0, torch.where(values < self.threshold, 0.0, 0.5))
        valid = ~torch.isnan(self.low) & ~torch.isnan(self.high)
        return torch.where(valid, torch.where(spread == 0, outside, inside), values)


def fitted(setup: Setup, good: Tensor, judged: Tensor) -> Model:
    """Return a model fitted on ``good``, with the threshold amid the scores of ``judged``, ``(N, h, w, 3)`` uint8."""
    model = Model(setup).eval()
    with torch.no_grad():
        model.model.fit(model.prepare(good.permute(0, 3, 1, 2) / 255.0))
    scores = model.raw(judged)[0].sort().values
    model.threshold = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    model.low, model.high = scores[0], scores[-1]
    return model.requires_grad_(False)


class PrecisionType(str, enum.Enum):
    FLOAT32 = "float32"


def checkpoint(model: Model, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what Lightning saves of an anomalib model."""
    setup = model.setup
    state = {name: value for name, value in model.state_dict().items() if name.startswith("model.")}
    state |= {
        "_is_fitted": torch.tensor([True]),
        "post_processor._image_threshold": model.threshold,
        "post_processor._pixel_threshold": torch.tensor(float("nan")),
        "post_processor.image_min": model.low,
        "post_processor.image_max": model.high,
    }
    transforms = [
        step("Resize", size=list(setup.size), interpolation="bilinear", max_size=None, antialias=True),
        *([step("CenterCrop", size=list(setup.crop))] if setup.crop else []),
        step("Normalize", mean=list(MEAN), std=list(STD), inplace=False),
    ]
    given: dict[str, Any] = {"backbone": setup.backbone[0], "layers": list(setup.backbone[1]), "pre_trained": False}
    if setup.kind == "patchcore":
        given |= {"coreset_sampling_ratio": 0.1, "num_neighbors": setup.neighbours, "precision": PrecisionType.FLOAT32}
    else:
        given |= {"n_features": 12}
    return {
        "epoch": 0,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "hyper_parameters": given,
        "anomalib_components_enabled": {"pre_processor": True, "post_processor": True},
        "anomalib_pre_processor_config": {"transform": step("Compose", transforms=transforms)},
        "anomalib_post_processor_config": {
            "enable_normalization": True,
            "enable_thresholding": True,
            "enable_threshold_matching": True,
            "image_sensitivity": setup.sensitivity,
        },
        **(changes or {}),
    }


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"torchvision.transforms.v2.{name}", "init_args": arguments}


def save(content: object, path: Path) -> Path:
    """Save with the class of its precision where anomalib has it, in a module that only the writer needs."""
    module = types.ModuleType("anomalib")
    module.PrecisionType = PrecisionType  # type: ignore[attr-defined]
    before = PrecisionType.__module__
    sys.modules["anomalib"], PrecisionType.__module__ = module, "anomalib"
    try:
        torch.save(content, path)
    finally:
        PrecisionType.__module__ = before
        del sys.modules["anomalib"]
    return path


def export(model: Model, path: Path, frame: Sequence[int]) -> Path:
    """Export as anomalib does, for frames of ``(height, width)``."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, *frame),),
        str(path),
        dynamo=True,
        opset_version=18,
        input_names=["input"],
        output_names=["pred_score", "pred_label", "anomaly_map"],
        verbose=False,
    )
    return path


def sharper(model: Model, sensitivity: float) -> Model:
    """Return the same model with another sensitivity."""
    other = Model(replace(model.setup, sensitivity=sensitivity)).eval()
    other.model, other.threshold, other.low, other.high = model.model, model.threshold, model.low, model.high
    return other
