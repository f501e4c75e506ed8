"""A model of several categories: a router that tells them apart, and a scoring module for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgead.detectors.protoad import unit
from edgead.features.features import FeatureExtractor
from edgead.features.scoring import ScoringModule
from edgead.runtime.errors import ConfigError

_SCALE = ("mean", "deviation")


class Router(nn.Module):
    """``images (N, h, w, 3)`` uint8 -> ``votes (N, K)``, ``similarity (N,)`` float32.

    Every patch votes for the category that holds the anchor most similar to it (cosine); votes are shares of the
    patches. The similarity is that of the winning category: the mean over patches of the largest cosine to its anchors.

    Args:
        extractor: images to patch features.
        anchors: ``(K, A, C)`` float32, unit rows.
    """

    anchors: Tensor

    def __init__(self, extractor: FeatureExtractor, anchors: Tensor) -> None:
        super().__init__()
        self.extractor = extractor
        self.register_buffer("anchors", anchors)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.route(self.extractor(images))

    def route(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return votes and similarity for features ``(N, C, gh, gw)``."""
        nearest = self.nearest(features)
        winners = nearest.argmax(2)
        categories = torch.arange(nearest.shape[2], device=nearest.device)
        votes = (winners[:, :, None] == categories).float().mean(1)
        # A product, not a gather: the votes' largest entry picks the column, and ties go to the first as in argmax.
        chosen = (votes.argmax(1)[:, None] == categories).float()
        return votes, (nearest.mean(1) * chosen).sum(1)

    def nearest(self, features: Tensor) -> Tensor:
        """Return the largest cosine of each patch to the anchors of each category, ``(N, P, K)``."""
        count, size, channels = self.anchors.shape
        rows = unit(features.flatten(2).transpose(1, 2))
        cosines = rows @ self.anchors.reshape(count * size, channels).T
        return cosines.reshape(cosines.shape[0], -1, count, size).amax(3)


class CategoryModule(nn.Module):
    """The scoring module of one category, its scores in standard deviations over the held-out normals of the category.

    Args:
        module: the scoring module.
        mean, deviation: of the raw scores of held-out normals; the map is moved and scaled alike.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, module: ScoringModule, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        score, grid = self.module(images)
        return (score - self.mean) / self.deviation, (grid - self.mean) / self.deviation


class RoutedModule(nn.Module):
    """``images (N, h, w, 3)`` uint8 -> score ``(N,)``, map ``(N, gh, gw)``, votes ``(N, K)``, similarity ``(N,)``.

    One pass of the backbone serves the router and the head of the category it chose, whose weights are gathered by its
    number. Router and heads can also be used apart, see `router` and `heads`.

    Args:
        router: its columns are the categories in the order of their names.
        heads: one a category, in the same order, all on the router's backbone.

    Raises:
        ConfigError: on a forward pass, where heads of different shapes cannot be gathered.
    """

    def __init__(self, router: Router, heads: Sequence[CategoryModule]) -> None:
        super().__init__()
        self.router = router
        self.heads = nn.ModuleList(heads)

    @property
    def extractor(self) -> FeatureExtractor:
        return self.router.extractor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        taps = self.extractor.backbone(images)
        votes, similarity = self.router.route(self.extractor.from_taps(taps))
        label = votes.argmax(1)
        first = self.heads[0]
        assert isinstance(first, CategoryModule)
        gathered = {name: stack[label] for name, stack in self._stacked().items()}

        def judge(weights: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, ...]:
            found = functional_call(first.module.head, dict(weights), (features[None],))
            return tuple(part[0] for part in found if part is not None)

        # Only the head itself: pooling and smoothing are the same for all, and mapped over images they would be loops.
        raw, *weight = torch.vmap(judge)(gathered, first.module.extractor.from_taps(taps))
        score, grid = first.module.finish(raw, weight[0] if weight else None)
        mean, deviation = (torch.stack([getattr(head, key) for head in self.heads])[label] for key in _SCALE)
        return (
            (score - mean) / deviation,
            (grid - mean[:, None, None]) / deviation[:, None, None],
            votes,
            similarity,
        )

    def save_tensors(self) -> dict[str, Tensor]:
        """Return the state without the backbone's copies in the heads, which are the router's backbone."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _is_copy(name)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `save_tensors` gave; raises `KeyError` or `RuntimeError` where it does not fit."""
        found = self.load_state_dict(dict(tensors), strict=False)
        missing = [name for name in found.missing_keys if not _is_copy(name)]
        if missing or found.unexpected_keys:
            raise KeyError(f"weights {[*missing, *found.unexpected_keys][0]!r} do not fit")

    def _bare_heads(self) -> list[nn.Module]:
        return [head.module.head for head in self.heads if isinstance(head, CategoryModule)]

    def _stacked(self) -> dict[str, Tensor]:
        """Return what the heads differ in, ``(K, ...)`` each."""
        own = [{**dict(head.named_parameters()), **dict(head.named_buffers())} for head in self._bare_heads()]
        for name, tensor in own[0].items():
            shapes = [tuple(tensors[name].shape) for tensors in own if name in tensors]
            if len(shapes) != len(own) or any(shape != tuple(tensor.shape) for shape in shapes):
                raise ConfigError(
                    f"the heads differ in the shape of '{name}' ({', '.join(map(str, shapes))}), so one graph cannot "
                    "hold them; export a router and heads, or fit with a fixed size of each head"
                )
        return {name: torch.stack([tensors[name] for tensors in own]) for name in own[0]}


def _is_copy(name: str) -> bool:
    return name.startswith("heads.") and ".extractor.backbone." in name
