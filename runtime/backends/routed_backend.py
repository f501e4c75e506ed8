"""Routed bundles: a router says which category an image shows, and that category's own head judges it.

A bundle holds either a router graph and one head graph for each category, of which only the head that is needed runs,
or one graph that does both. Columns of the router's votes are the categories in the order of their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo, Network, open_backend, open_network
from edgead.runtime.backends.saturation_probe import require_exact_sums
from edgead.runtime.backends.tiled_backend import TiledBackend
from edgead.runtime.bundle.layout import head_file
from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY
from edgead.runtime.errors import BackendError, BundleError, EngineMissing
from edgead.runtime.frame import Inference

if TYPE_CHECKING:
    from edgead.runtime.bundle.manifest import Manifest

ROUTER_OUTPUTS = ("votes", "similarity")
FUSED_OUTPUTS = ("score", "map", *ROUTER_OUTPUTS)


class RoutedBackend:
    """A router and the heads of its categories, as one `Backend`.

    Args:
        router: images to ``votes (N, K)``, the share of patches that chose each category, and ``similarity (N,)``, how
            like its category the image is.
        heads: category to the backend of its head, K of them; closed together with the router.
        minimum_similarity: category to the similarity below which an image is none of its parts.
    """

    def __init__(self, router: Network, heads: Mapping[str, Backend], minimum_similarity: Mapping[str, float]) -> None:
        self._router = router
        self._heads = {name: heads[name] for name in sorted(heads)}
        self._minimum = dict(minimum_similarity)

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Route ``images (N, h, w, 3)`` and score each with the head of its category, unknown ones too."""
        votes, similarity = self._router.compute(images)
        categories, reasons = route(votes, similarity, list(self._heads), self._minimum)
        score = np.empty(len(images), np.float32)
        grid: NDArray[np.float32] | None = None
        for category in dict.fromkeys(categories):
            rows = [row for row, found in enumerate(categories) if found == category]
            part = self._heads[category].run(images[rows])
            if grid is None:
                grid = np.empty((len(images), *part.map.shape[1:]), np.float32)
            if part.map.shape[1:] != grid.shape[1:]:
                raise BackendError(f"the head of {category} gives a map of another grid; export the bundle again")
            score[rows], grid[rows] = part.score, part.map
        assert grid is not None
        return Inference(score, grid, categories, reasons)

    @property
    def networks(self) -> list[Network | Backend]:
        """What it is composed of, the router first."""
        return [self._router, *self._heads.values()]

    def describe(self) -> BackendInfo:
        """Return what the router runs on; the heads run on the same, and their native code is named."""
        described = self._router.describe()
        providers = [described.provider, *(head.describe().provider for head in self._heads.values())]
        return replace(described, provider="; ".join(dict.fromkeys(providers)))

    def close(self) -> None:
        """Release router and heads; calling it twice is allowed."""
        self._router.close()
        for head in self._heads.values():
            head.close()


class FusedBackend:
    """A graph that routes and scores at once, as one `Backend`.

    Args:
        network: images to score, map, votes and similarity.
        minimum_similarity: as in `RoutedBackend`; its keys are the categories.
    """

    def __init__(self, network: Network, minimum_similarity: Mapping[str, float]) -> None:
        self._network = network
        self._minimum = {name: minimum_similarity[name] for name in sorted(minimum_similarity)}

    def run(self, images: NDArray[np.uint8]) -> Inference:
        score, grid, votes, similarity = self._network.compute(images)
        return Inference(score, grid, *route(votes, similarity, list(self._minimum), self._minimum))

    @property
    def networks(self) -> list[Network | Backend]:
        """What it is composed of."""
        return [self._network]

    def describe(self) -> BackendInfo:
        return self._network.describe()

    def close(self) -> None:
        self._network.close()


def route(
    votes: NDArray[np.float32],
    similarity: NDArray[np.float32],
    names: Sequence[str],
    minimum: Mapping[str, float],
) -> tuple[list[str], list[str | None]]:
    """Return the category with most votes of each image, and the reason where the image is not like its parts.

    Raises:
        BackendError: the votes have another number of columns than there are categories.
    """
    if votes.ndim != 2 or votes.shape[1] != len(names) or similarity.shape != votes.shape[:1]:
        raise BackendError(
            f"the router gave votes {votes.shape} and similarity {similarity.shape} for {len(names)} categories; "
            "export the bundle again"
        )
    categories = [names[winner] for winner in votes.argmax(axis=1)]
    return categories, [_reason(*pair, minimum) for pair in zip(categories, similarity.tolist(), strict=True)]


def _reason(name: str, similarity: float, minimum: Mapping[str, float]) -> str | None:
    if similarity >= minimum[name]:  # never true of NaN
        return None
    return f"{UNKNOWN_CATEGORY} (similarity {similarity:.3f} to {name}, its parts reach {minimum[name]:.3f})"


# More than six parameters: what `open_backend` takes, and the bundle that says what the files are.
def open_model(
    backend: str,
    manifest: Manifest,
    model: Path,
    precision: str,
    *,
    threads: int | None = None,
    batch: int = 1,
    bundle: Path | None = None,
) -> Backend:
    """Open the graph files of a bundle, single or routed.

    Args:
        backend: registry name.
        manifest: of the bundle.
        model: the graph file of ``precision`` as `Bundle.model_files` extracts it, the heads' beside it.
        precision: key of the manifest's precisions.
        threads, batch: as in `open_backend`; heads are compiled for one image, since a batch may hold all categories.
        bundle: where the bundle lies, for the command in an error.

    Raises:
        BundleError: a head is missing.
        BackendUnavailable, BackendError: as `open_backend`, and `require_exact_sums`.
    """
    require_exact_sums(manifest, precision, backend)
    try:
        opened = _open_graphs(backend, manifest, model, precision, threads, batch)
        tiles = manifest.tiles()
        return opened if tiles is None else TiledBackend(opened, tiles)
    except EngineMissing as error:
        raise error.of_bundle(bundle or f"{manifest.name}.edgead") from error


def _open_graphs(
    backend: str, manifest: Manifest, model: Path, precision: str, threads: int | None, batch: int
) -> Backend:
    if manifest.graph == "single":
        return open_backend(backend, model, threads=threads, batch=batch)
    minimum = manifest.minimum_similarity()
    files = {name: model.with_name(head_file(name, precision)) for name in minimum}
    missing = [file.name for file in files.values() if not file.is_file()]
    if len(missing) == len(files):
        return FusedBackend(open_network(backend, model, FUSED_OUTPUTS, threads=threads, batch=batch), minimum)
    if missing:
        raise BundleError(f"{manifest.name} lacks {missing[0]}; export it again with 'edgead export'")
    return open_routed(backend, model, files, minimum, threads=threads, batch=batch)


def open_routed(
    backend: str,
    router: Path,
    heads: Mapping[str, Path],
    minimum_similarity: Mapping[str, float],
    *,
    threads: int | None = None,
    batch: int = 1,
) -> RoutedBackend:
    """Open a router's graph file and those of its heads; nothing stays open where one of them fails."""
    network = open_network(backend, router, ROUTER_OUTPUTS, threads=threads, batch=batch)
    opened: dict[str, Backend] = {}
    try:
        for name, file in heads.items():
            opened[name] = open_backend(backend, file, threads=threads)
    except BaseException:
        RoutedBackend(network, opened, minimum_similarity).close()
        raise
    return RoutedBackend(network, opened, minimum_similarity)
