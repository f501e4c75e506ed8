"""SLSG's self-attentive graph layer: every cell of the coarsest features is a node, related to all and to a few."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.detectors.networks.blocks import ConvNorm

_GROUPS = 4


class GraphLayer(nn.Module):
    """``(N, C, h, w)`` to the same shape: the features plus what their dense and sparse relations say [C].

    X = BN(conv1x1(features)), Q = K = BN(conv1x1(X)) with C / 2 channels.
    *Dense*: softmax(Q K^T), unscaled, times V, then conv1x1. The code's V is a 3x3 convolution of a column of nodes;
    ours is of the nodes where they lie in the image.
    *Sparse*: cos(Q_i, K_j) + R_ij with R = -(2 / d) P P^T, P a sine-cosine embedding of d = C channels; of the
    ``neighbours * stride`` largest every ``stride``-th is a neighbour, and r_i = max_j (X_j - X_i). Added to a
    similarity, R favours nodes that are far away, which may not have been meant: ``favour_distant=False`` turns its
    sign.
    *Merge*: channels of X + Ctx and r in turn, grouped conv1x1, BN, GELU, conv1x1, BN, plus the features.

    Args:
        channels: C, a multiple of 4.
        grid: ``(h, w)``; fewer than ``neighbours * stride`` nodes are all looked at.
        neighbours, stride: 9 and 3 in the code.
        favour_distant: as the code does.
    """

    relative: Tensor

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        *,
        neighbours: int = 9,
        stride: int = 3,
        favour_distant: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.channels = grid, channels
        nodes = grid[0] * grid[1]
        self.stride = stride if neighbours * stride <= nodes else 1
        self.considered = min(neighbours * self.stride, nodes)
        self.node = ConvNorm(channels, channels, 1, activation="none")
        self.key = ConvNorm(channels, channels // 2, 1, activation="none")
        self.value = nn.Conv2d(channels, channels, 3, padding=1)
        self.context = nn.Conv2d(channels, channels, 1)
        self.merge = ConvNorm(2 * channels, 2 * channels, 1, groups=_GROUPS, activation="gelu")
        self.out = ConvNorm(2 * channels, channels, 1, activation="none")
        positions = sine_cosine(channels, grid)
        relative = (2.0 / channels) * positions @ positions.T
        self.register_buffer("relative", -relative if favour_distant else relative, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        nodes: Tensor = self.node(features)
        keys = self.key(nodes).flatten(2).transpose(1, 2)  # (N, P, C / 2)
        dense = self._dense(nodes, keys)
        sparse = self._sparse(nodes.flatten(2).transpose(1, 2), keys)
        pair = torch.stack([nodes + dense, _as_map(sparse, self.grid)], dim=2).flatten(1, 2)
        merged: Tensor = self.out(self.merge(pair))
        return merged + features

    def _dense(self, nodes: Tensor, keys: Tensor) -> Tensor:
        attention = torch.softmax(keys @ keys.transpose(1, 2), dim=2)
        values = self.value(nodes).flatten(2).transpose(1, 2)
        context: Tensor = self.context(_as_map(attention @ values, self.grid))
        return context

    def neighbours(self, keys: Tensor) -> Tensor:
        """Return the indices ``(N, P, k)`` of every node's neighbours, of keys ``(N, P, C / 2)``."""
        unit = keys / torch.sqrt((keys * keys).sum(2, keepdim=True) + 1e-12)
        likeness = unit @ unit.transpose(1, 2) + self.relative
        return torch.topk(likeness, self.considered, dim=2).indices[:, :, :: self.stride]

    def _sparse(self, nodes: Tensor, keys: Tensor) -> Tensor:
        chosen = self.neighbours(keys)
        largest = None
        # One neighbour at a time: all of them together would be as many copies of the features.
        for place in range(chosen.shape[2]):
            others = torch.gather(nodes, 1, chosen[:, :, place : place + 1].expand(-1, -1, self.channels))
            largest = others if largest is None else torch.maximum(largest, others)
        assert largest is not None
        return largest - nodes


def _as_map(nodes: Tensor, grid: tuple[int, int]) -> Tensor:
    return nodes.transpose(1, 2).reshape(-1, nodes.shape[2], *grid)


def sine_cosine(channels: int, grid: tuple[int, int]) -> Tensor:
    """Return the two-dimensional sine-cosine embedding ``(h * w, channels)`` float32: half of it for rows."""
    quarter = channels // 4
    rates = torch.exp(-math.log(10_000.0) * torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    parts = []
    for places in (rows.flatten(), columns.flatten()):
        angles = places[:, None] * rates
        parts += [torch.sin(angles), torch.cos(angles)]
    embedding = torch.cat(parts, dim=1).float()
    return F.pad(embedding, (0, channels - embedding.shape[1]))
