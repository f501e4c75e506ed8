"""anomalib's PatchCore and PaDiM as scoring modules: the same raw scores, with less arithmetic.

anomalib resizes the distances of the patches to the size of the network's input and blurs that picture with a 33x33
kernel. Resizing and blurring are linear and separable, so both together are one matrix for the rows and one for the
columns: of 32x32 patches at 256x256 pixels 2 million multiplications in place of 71 million. Each cell of the map that
comes out is the mean of that picture over the cell, which takes two small matrices. PaDiM's image score is the maximum
of the picture itself, which is therefore computed; PatchCore's is a distance, weighed by a neighbourhood of the bank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.detectors.heads import MahalanobisHead, NearestNeighbourHead
from edgead.features.features import pool, resize_map
from edgead.features.folding import Backbone
from edgead.importing.model import PATCHCORE, AnomalibModel, Preparation
from edgead.runtime.errors import ConfigError, DataError

_BLOCK = 64  # locations whose float64 matrices are held at a time
_ROWS = 512  # bank rows compared with all others at a time
_SPARE = 8  # more of them than wanted, whose distances are taken exactly
# Of the largest eigenvalue: rounding of a float32 inverse leaves less below zero; more is no inverse covariance.
_ROUNDING = 1e-3


def scoring_module(model: AnomalibModel) -> tuple[nn.Module, tuple[int, int]]:
    """Return the scoring module in eval mode and the grid ``(gh, gw)`` of its map.

    Raises:
        DataError: its parts do not fit together.
        ConfigError: its crop does not lie on whole patches.
    """
    inner = model.preparation.inner
    with torch.inference_mode():
        taps = model.backbone(torch.zeros(1, *inner, 3, dtype=torch.uint8))
    grid = int(taps[0].shape[2]), int(taps[0].shape[3])
    frame = _Frame(model.preparation, grid)
    module: nn.Module
    if model.kind == PATCHCORE:
        module = _patchcore(model, frame, grid)
    else:
        module = _padim(model, frame, grid, [(tap.shape[2], tap.shape[3]) for tap in taps])
    return module.eval().requires_grad_(False), frame.grid


class _Frame(nn.Module):
    """The crop of the input that is judged, and where its map lies in the map of the whole.

    Args:
        preparation: of the images.
        inner: ``(gh, gw)`` cells of the crop.
    """

    def __init__(self, preparation: Preparation, inner: tuple[int, int]) -> None:
        super().__init__()
        (self.top, self.left), (self.height, self.width) = preparation.corner, preparation.inner
        size = preparation.height, preparation.width
        self.whole = (self.height, self.width) == size
        pads = []
        for side, start, length, cells in zip(size, (self.top, self.left), preparation.inner, inner, strict=True):
            before, after = start * cells / length, (side - start - length) * cells / length
            if not (before.is_integer() and after.is_integer()):
                raise ConfigError(
                    f"the centre crop of {self.height}x{self.width} from {size[0]}x{size[1]} does not begin and end on "
                    "whole patches, so its map has no place in the whole; fit the model without CenterCrop"
                )
            pads.append((int(before), int(after)))
        self.pads = (*pads[1], *pads[0])
        self.grid = inner[0] + sum(pads[0]), inner[1] + sum(pads[1])

    def cut(self, pixels: Tensor) -> Tensor:
        """Return the crop of ``(N, 3, h, w)``."""
        if self.whole:
            return pixels
        return pixels[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def place(self, maps: Tensor) -> Tensor:
        """Put ``(N, gh, gw)`` of the crop into the whole; what was not judged is 0."""
        return maps if self.whole else F.pad(maps, self.pads)


class _Taps(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB at network size -> the taps of the crop."""

    def __init__(self, backbone: Backbone, frame: _Frame) -> None:
        super().__init__()
        self.backbone = backbone
        self.frame = frame

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Cast and Transpose first: TensorRT's parser refuses to slice or transpose uint8.
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) - self.backbone.mean
        taps: tuple[Tensor, ...] = self.backbone.body(self.frame.cut(pixels))
        return taps


class PatchCoreScoring(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB -> ``(score (N,), map (N, gh, gw))`` float32, as anomalib's PatchCore.

    The score is the largest distance of a patch, before any blur, times one minus the softmax of its distance among
    the neighbours of its nearest bank row.

    Args:
        taps: images to feature maps.
        head: with the neighbours of each bank row, or without where anomalib weighs nothing.
        rows, columns: ``(gh, gh)`` and ``(gw, gw)``, see `mean_matrix`.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, taps: _Taps, head: NearestNeighbourHead, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.taps = taps
        self.head = head
        self.register_buffer("rows", rows.float())
        self.register_buffer("columns", columns.T.float().contiguous())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        taps = self.taps(images)
        grid = taps[0].shape[2], taps[0].shape[3]
        features = torch.cat([resize_map(pool(tap), grid) for tap in taps], dim=1)
        raw, weight = self.head(features)
        score = raw.amax(dim=(1, 2))
        blurred = torch.matmul(torch.matmul(self.rows, raw), self.columns)
        return (score if weight is None else score * weight), self.taps.frame.place(blurred)


class PadimScoring(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB -> ``(score (N,), map (N, gh, gw))`` float32, as anomalib's PaDiM.

    Args:
        taps: images to feature maps.
        kept: channels of each tap that the Gaussians are over, ``(c_i,)`` int64.
        nearest: for each tap the rows and columns, ``(gh,)`` and ``(gw,)`` int64, that enlarge it to the grid.
        head: of the channels in order.
        rows, columns: ``(h, gh)`` and ``(w, gw)``, see `blur_matrix`; of the picture whose maximum is the score.
        row_means, column_means: ``(gh, gh)`` and ``(gw, gw)``, see `mean_matrix`; of the map.
    """

    rows: Tensor
    columns: Tensor
    row_means: Tensor
    column_means: Tensor

    def __init__(
        self,
        taps: _Taps,
        kept: list[Tensor],
        nearest: list[tuple[Tensor, Tensor]],
        head: MahalanobisHead,
        lines: tuple[Tensor, Tensor],
        means: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.taps = taps
        self.head = head
        for index, (channels, (down, across)) in enumerate(zip(kept, nearest, strict=True)):
            self.register_buffer(f"kept_{index}", channels)
            self.register_buffer(f"down_{index}", down)
            self.register_buffer(f"across_{index}", across)
        self.register_buffer("rows", lines[0].float())
        self.register_buffer("columns", lines[1].T.float().contiguous())
        self.register_buffer("row_means", means[0].float())
        self.register_buffer("column_means", means[1].T.float().contiguous())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        taps = self.taps(images)
        grid = taps[0].shape[2], taps[0].shape[3]
        maps = []
        for index, tap in enumerate(taps):
            channels = getattr(self, f"kept_{index}")
            if not len(channels):
                continue
            tap = tap.index_select(1, channels)
            if (tap.shape[2], tap.shape[3]) != grid:
                # As Gather: the coordinates that ONNX's Resize takes for torch's "nearest" are not TensorRT's.
                tap = tap.index_select(2, getattr(self, f"down_{index}"))
                tap = tap.index_select(3, getattr(self, f"across_{index}"))
            maps.append(tap)
        raw, _ = self.head(torch.cat(maps, dim=1))
        score = torch.matmul(torch.matmul(self.rows, raw), self.columns).amax(dim=(1, 2))
        blurred = torch.matmul(torch.matmul(self.row_means, raw), self.column_means)
        return score, self.taps.frame.place(blurred)


def _patchcore(model: AnomalibModel, frame: _Frame, grid: tuple[int, int]) -> PatchCoreScoring:
    bank, channels = model.tensors["memory_bank"], sum(model.backbone.channels)
    if bank.dim() != 2 or bank.shape[1] != channels:
        raise DataError(f"a memory bank of {tuple(bank.shape)} does not fit features of {channels} channels")
    _require_finite(bank)
    neighbours = neighbourhoods(bank, model.neighbours) if model.neighbours > 1 else None
    head = NearestNeighbourHead(bank, neighbours)
    sides = zip(grid, model.preparation.inner, strict=True)
    rows, columns = (mean_matrix(cells, pixels, model.blur, "nearest") for cells, pixels in sides)
    return PatchCoreScoring(_Taps(model.backbone, frame), head, rows, columns)


def _padim(model: AnomalibModel, frame: _Frame, grid: tuple[int, int], sizes: list[tuple[int, int]]) -> PadimScoring:
    mean, inverse, chosen = (model.tensors[name] for name in ("mean", "inv_covariance", "idx"))
    cells, channels, d = grid[0] * grid[1], sum(model.backbone.channels), chosen.numel()
    if chosen.dim() != 1 or mean.shape != (d, cells) or inverse.shape != (cells, d, d) or not 0 < d <= channels:
        raise DataError(
            f"Gaussians of {tuple(mean.shape)} and {tuple(inverse.shape)} do not fit {d} channels at {cells} places; "
            "was the model fitted on images of this size?"
        )
    if int(chosen.min()) < 0 or int(chosen.max()) >= channels or len(torch.unique(chosen)) != d:
        raise DataError(f"the Gaussians are of channels that the {channels} features do not have")
    _require_finite(mean)
    chosen, order = torch.sort(chosen.long())
    factors = torch.empty_like(inverse)
    for start in range(0, cells, _BLOCK):
        part = slice(start, start + _BLOCK)
        factors[part] = whitening(inverse[part][:, order][:, :, order].double()).float()
    head = MahalanobisHead(mean[order].T.contiguous(), factors)
    ends = torch.tensor(model.backbone.channels).cumsum(0).tolist()
    kept = [
        chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        for end, count in zip(ends, model.backbone.channels, strict=True)
    ]
    nearest = [(_nearest(size[0], grid[0]), _nearest(size[1], grid[1])) for size in sizes]
    sides = list(zip(grid, model.preparation.inner, strict=True))
    rows, columns = (blur_matrix(count, pixels, model.blur, "linear") for count, pixels in sides)
    across, down = (mean_matrix(count, pixels, model.blur, "linear") for count, pixels in sides)
    return PadimScoring(_Taps(model.backbone, frame), kept, nearest, head, (rows, columns), (across, down))


def neighbourhoods(bank: Tensor, count: int) -> Tensor:
    """Return for each row of ``bank (M, C)`` the ``(M, min(count, M))`` int64 rows nearest to it, itself first."""
    centred = bank - bank.mean(0)
    squares = centred.square().sum(1)
    count = min(count, len(bank))
    found = []
    for start in range(0, len(bank), _ROWS):
        part = slice(start, start + _ROWS)
        # A matrix product finds who may be near, and differences who is: only they give a row to itself zero.
        rough = squares - 2.0 * centred[part] @ centred.T
        near = rough.topk(min(count + _SPARE, len(bank)), largest=False).indices
        exact = (bank[near].double() - bank[part, None].double()).square().sum(2)
        found.append(near.gather(1, exact.topk(count, largest=False).indices))
    return torch.cat(found)


def whitening(inverse: Tensor) -> Tensor:
    """Return lower triangular ``W (b, d, d)`` with ``W^T W`` the symmetric part of ``inverse (b, d, d)``, float64.

    Only the symmetric part counts in a quadratic form. Where rounding left a matrix that is not positive definite, its
    negative eigenvalues are set to zero; anomalib clamps the squared distance at zero instead.

    Raises:
        DataError: something is not finite, or an eigenvalue lies farther below zero than rounding takes it.
    """
    _require_finite(inverse)
    symmetric = (inverse + inverse.transpose(1, 2)) / 2
    # Reversed in both axes, the lower triangle of Cholesky's L L^T becomes the one of W^T W.
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(symmetric.flip(1, 2))
    found = factor.transpose(1, 2).flip(1, 2).contiguous()
    for index in torch.nonzero(failed)[:, 0].tolist():
        values, vectors = torch.linalg.eigh(symmetric[index])
        if float(values.min()) < -_ROUNDING * float(values.max()):
            raise DataError("a matrix of this PaDiM is no inverse covariance; the file is damaged")
        root = values.clamp(min=0.0).sqrt()[:, None] * vectors.T
        triangle = torch.linalg.qr(root.flip(1), mode="r").R
        found[index] = triangle.flip(0, 1)
    return found


def blur_matrix(cells: int, pixels: int, line: Tensor, mode: str) -> Tensor:
    """Return ``(pixels, cells)`` float64: what resizing a line of cells and blurring it, borders mirrored, does to it.

    Args:
        line: ``(k,)`` float64, k odd.
        mode: of the resize, ``nearest`` or ``linear``.
    """
    radius = len(line) // 2
    if pixels <= radius:
        raise ConfigError(f"a picture of {pixels} pixels is too small for a blur of {len(line)}")
    corners = {"align_corners": False} if mode == "linear" else {}
    unit = torch.eye(cells, dtype=torch.float64)[:, None]
    resized = F.interpolate(unit, size=pixels, mode=mode, **corners)
    blurred = F.conv1d(F.pad(resized, (radius, radius), mode="reflect"), line[None, None])
    return blurred[:, 0].T


def mean_matrix(cells: int, pixels: int, line: Tensor, mode: str) -> Tensor:
    """Return ``(cells, cells)`` float64: as `blur_matrix`, and then the mean over each cell."""
    means: Tensor = F.adaptive_avg_pool1d(blur_matrix(cells, pixels, line, mode).T[None], cells)
    return means[0].T


def _nearest(source: int, target: int) -> Tensor:
    """Return the cells ``(target,)`` int64 that torch's "nearest" takes, as it takes them."""
    places = torch.arange(source, dtype=torch.float32)[None, None]
    return F.interpolate(places, size=target, mode="nearest")[0, 0].long()


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise DataError("the file holds numbers that are NaN or infinite; fit the model again")
