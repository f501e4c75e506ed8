"""Vision transformers laid out as the masked auto-encoder's released code, so that its public weights load by name.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022; pre-norm blocks as in Dosovitskiy et al., ICLR
2021. Sizes are constants of the module, and the attention is written out, so that a graph is made of plain operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.features.backbones import read_state
from edgead.runtime.errors import DataError

_EPS = 1e-6
_MLP = 4  # width of a block's hidden layer over the block's own
_INIT_STD = 0.02

# Size of a published encoder: channels, blocks, heads.
SIZES: Mapping[str, tuple[int, int, int]] = {
    "mini": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """The patches of an image: ``patch`` pixels a side, ``rows x columns`` of them, numbered row by row."""

    patch: int
    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns

    @classmethod
    def of(cls, size: tuple[int, int], patch: int) -> Grid:
        return cls(patch, size[0] // patch, size[1] // patch)


class Attention(nn.Module):
    """Multi-head self-attention of tokens ``(N, T, C)``."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.heads, self.width = heads, channels // heads
        self.scale = float(self.width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        split = self.qkv(x).reshape(-1, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = split[0] * self.scale, split[1], split[2]
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=-1)
        mixed = torch.matmul(weights, value).permute(0, 2, 1, 3).reshape(-1, tokens, self.heads * self.width)
        result: Tensor = self.proj(mixed)
        return result


class _Mlp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, _MLP * channels)
        self.fc2 = nn.Linear(_MLP * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Attention and a hidden layer, each behind a layer normalisation and added to what went in."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_EPS)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=_EPS)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class _Patches(nn.Module):
    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return patches


class VitEncoder(nn.Module):
    """Normalised images ``(N, 3, h, w)`` to tokens ``(N, 1 + T, C)``, the class token first, patches in their order.

    Args:
        size: ``(channels, blocks, heads)``.
        grid: of the patches.
    """

    pos_embed: Tensor

    def __init__(self, size: tuple[int, int, int], grid: Grid) -> None:
        super().__init__()
        channels, depth, heads = size
        self.channels, self.grid = channels, grid
        self.patch_embed = _Patches(grid.patch, channels)
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.register_buffer("pos_embed", torch.from_numpy(sine_cosine(channels, grid)))
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        initialise(self)
        nn.init.normal_(self.cls_token, std=_INIT_STD)

    def embed(self, images: Tensor) -> Tensor:
        """Return patches ``(N, T, C)`` with their positions."""
        patches: Tensor = self.patch_embed(images) + self.pos_embed[:, 1:]
        return patches

    def encode(self, patches: Tensor) -> Tensor:
        """Return what the blocks make of some or all embedded patches ``(N, K, C)``: ``(N, 1 + K, C)``."""
        # Built from the patches rather than expanded, so that the graph needs no shape of its input.
        token = patches[:, :1] * 0.0 + (self.cls_token + self.pos_embed[:, :1])
        x = torch.cat([token, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.norm(x)
        return result

    def forward(self, images: Tensor) -> Tensor:
        return self.encode(self.embed(images))


def initialise(module: nn.Module) -> None:
    """Set weights as the auto-encoder's code does: Xavier for matrices, the patches' among them, biases zero."""
    for one in module.modules():
        if isinstance(one, nn.Linear):
            nn.init.xavier_uniform_(one.weight)
            nn.init.zeros_(one.bias)
        elif isinstance(one, nn.Conv2d):
            nn.init.xavier_uniform_(one.weight.flatten(1))
            if one.bias is not None:
                nn.init.zeros_(one.bias)


def sine_cosine(channels: int, grid: Grid) -> NDArray[np.float32]:
    """Return fixed positions ``(1, 1 + T, C)`` float32, zeros for the class token.

    The first half of the channels tells the column, the second the row, as in the released code; in each a quarter of
    all is sines, a quarter cosines, of frequencies ``10000^(-4 i / C)``.
    """
    quarter = channels // 4
    frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.divmod(np.arange(grid.count), grid.columns)
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    positions = np.concatenate([np.zeros((1, channels)), table])
    return np.asarray(positions[None], np.float32)


def patchify(images: Tensor, grid: Grid) -> Tensor:
    """Return the pixels ``(N, T, p p c)`` of the patches of ``(N, c, h, w)``, channels last within a patch."""
    p, channels = grid.patch, images.shape[1]
    cut = images.reshape(-1, channels, grid.rows, p, grid.columns, p).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(-1, grid.count, p * p * channels)


def unpatchify(tokens: Tensor, grid: Grid) -> Tensor:
    """Undo `patchify`: ``(N, T, p p c)`` to ``(N, c, h, w)``."""
    p = grid.patch
    channels = tokens.shape[2] // (p * p)
    laid = tokens.reshape(-1, grid.rows, grid.columns, p, p, channels).permute(0, 5, 1, 3, 2, 4)
    return laid.reshape(-1, channels, grid.rows * p, grid.columns * p)


def load_mae(encoder: VitEncoder, path: Path) -> None:
    """Copy the encoder of a released masked auto-encoder, ``mae_pretrain_vit_*.pth`` or the like, from a local file.

    Positions are taken too where the file has as many; at another image size the formula's stay.

    Raises:
        DataError: no such file, or the weights of another network.
    """
    state = read_state(path)
    wanted = encoder.state_dict()
    positions = state.get("pos_embed")
    if positions is None or positions.shape != encoder.pos_embed.shape:
        state = {**state, "pos_embed": encoder.pos_embed}
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise DataError(f"{path} holds no masked auto-encoder of this depth ('{missing[0]}' is not in it)")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if len(blocks) != len(encoder.blocks):
        raise DataError(f"{path} holds an encoder of {len(blocks)} blocks, wanted are {len(encoder.blocks)}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            found, want = tuple(state[name].shape), tuple(tensor.shape)
            raise DataError(f"{path} does not fit: '{name}' is {found} and should be {want}; check vit and patch")
    encoder.load_state_dict({name: state[name].float() for name in wanted})
