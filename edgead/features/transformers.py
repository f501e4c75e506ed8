"""timm's vision transformers as frozen backbones: patch tokens of chosen blocks as maps, everything of a size constant.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; registers: Darcet et al., ICLR 2024; rotary positions:
Heo et al., ECCV 2024, as in DINOv3. timm's blocks are kept; its attention, whose reshapes ask for the number of images,
is replaced by one without shape arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgead.features.folding import Backbone, fold_scale
from edgead.runtime.errors import ConfigError

# timm's attentions that `_Attention` computes; others (differential, in parallel with the hidden layer) are refused.
_KNOWN_ATTENTION = frozenset({"Attention", "EvaAttention", "AttentionRope"})


class TransformerBody(nn.Module):
    """Pixels ``(N, 3, h, w)``, mean already subtracted, to a map ``(N, C, h / patch, w / patch)`` for each tap.

    Args:
        network: timm's ``VisionTransformer`` or ``Eva``, built for this size; it is used up.
        taps: numbers of the blocks whose tokens are taken, the first block being 1, rising.
        grid: ``(rows, columns)`` of patches.
    """

    positions: Tensor | None
    prefix: Tensor | None
    sine: Tensor | None
    cosine: Tensor | None

    def __init__(self, network: Any, taps: Sequence[int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.patches, self.patch_norm = network.patch_embed.proj, network.patch_embed.norm
        self.norm_pre, self.norm = network.norm_pre, network.norm
        self.blocks = network.blocks[: taps[-1]]
        self.taps, self.grid = tuple(taps), grid
        prefix, positions = _constant_tokens(network)
        self.skipped = 0 if prefix is None else prefix.shape[1]
        self.register_buffer("prefix", prefix)
        self.register_buffer("positions", positions)
        sine, cosine = _rotations(network, grid, self.skipped)
        self.register_buffer("sine", sine)
        self.register_buffer("cosine", cosine)
        tokens = self.skipped + grid[0] * grid[1]
        for block in self.blocks:
            block.attn = _Attention(block.attn, tokens)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_norm(self.patches(pixels).flatten(2).transpose(1, 2))
        if self.positions is not None:
            x = x + self.positions
        if self.prefix is not None:
            # Made from the patches rather than expanded, so that the graph needs no shape of its input.
            x = torch.cat([x[:, :1] * 0.0 + self.prefix, x], dim=1)
        x = self.norm_pre(x)
        maps = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x) if self.sine is None or self.cosine is None else block(x, rope=self._rotation(number))
            if number in self.taps:
                # As DINOv2 gives out tokens of any block; without it a few channels outweigh all others.
                found = self.norm(x)[:, self.skipped :]
                maps.append(found.transpose(1, 2).reshape(-1, found.shape[2], *self.grid))
        return tuple(maps)

    def _rotation(self, number: int) -> tuple[Tensor, Tensor]:
        """Return sine and cosine for a block, counted from 1; mixed positions have their own in each."""
        assert self.sine is not None
        assert self.cosine is not None
        place = number - 1 if len(self.sine) > 1 else 0
        return self.sine[place], self.cosine[place]


class _Attention(nn.Module):
    """Self-attention with timm's weights; the scale of the scores is folded into those of the queries.

    Args:
        timm: one of `_KNOWN_ATTENTION`.
        tokens: how many there are, those without a patch included.
    """

    def __init__(self, timm: Any, tokens: int) -> None:
        super().__init__()
        weight, bias = _joined(timm)
        self.tokens, self.heads, self.width = tokens, timm.num_heads, weight.shape[0] // (3 * timm.num_heads)
        self.q_norm, self.k_norm, self.norm = timm.q_norm, timm.k_norm, timm.norm
        self.gate, self.proj = timm.gate, timm.proj
        self.halves = bool(getattr(timm, "rotate_half", False))
        # A normalisation of the queries would undo what is folded into their weights.
        normed = not isinstance(timm.q_norm, nn.Identity)
        self.scale = float(timm.scale) if normed else 1.0
        if not normed:
            share = weight.shape[0] // 3
            weight[:share] *= timm.scale
            bias[:share] *= timm.scale
        self.qkv = nn.Linear(weight.shape[1], weight.shape[0])
        self.qkv.weight, self.qkv.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, **masks: object) -> Tensor:
        """Map tokens ``(N, T, C)`` to the same shape; timm's blocks pass masks, which are not set here."""
        del masks
        split = self.qkv(x).reshape(-1, self.tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(split[0]), self.k_norm(split[1])
        if rope is not None:
            query, key = self._rotate(query, *rope), self._rotate(key, *rope)
        if self.scale != 1.0:
            query = query * self.scale
        weights = torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=-1)
        mixed = torch.matmul(weights, split[2]).permute(0, 2, 1, 3).reshape(-1, self.tokens, self.heads * self.width)
        mixed = self.norm(mixed)
        if self.gate is not None:
            mixed = mixed * torch.sigmoid(self.gate(x))
        result: Tensor = self.proj(mixed)
        return result

    def _rotate(self, x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
        """Turn pairs of channels by an angle that tells the place: halves of a head, or neighbours."""
        if self.halves:
            half = self.width // 2
            turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        else:
            pairs = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1)
            turned = pairs.reshape(-1, self.heads, self.tokens, self.width)
        return x * cosine + turned * sine


def fold_transformer(
    network: Any, taps: Sequence[int], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Backbone:
    """Cut a vision transformer behind the last block that is tapped, and make constant what depends on its size.

    Args:
        network: timm's ``VisionTransformer`` or ``Eva``, built for ``size``; it is used up.
        taps: block numbers from 1, rising.
        size: input ``(height, width)`` in pixels, multiples of the patch.
        mean, std: ``(3,)``, what its input is normalised with, in grey levels.

    Raises:
        ConfigError: its blocks are of another kind.
    """
    if not all(_known(getattr(block, "attn", None)) for block in network.blocks):
        raise ConfigError("its blocks have an attention of a kind that is not known here; choose another backbone")
    patch = network.patch_embed.patch_size
    body = TransformerBody(network.eval(), taps, (size[0] // patch[0], size[1] // patch[1]))
    fold_scale(body.patches, std)
    return Backbone(body, mean, [int(body.patches.out_channels)] * len(taps), tokens=True).eval().requires_grad_(False)


def _known(attention: Any) -> bool:
    """Whether `_Attention` computes this; it has as many heads of keys as of queries."""
    heads = getattr(attention, "num_kv_heads", None)
    return type(attention).__name__ in _KNOWN_ATTENTION and heads in (None, attention.num_heads)


def _joined(attention: Any) -> tuple[Tensor, Tensor]:
    """Return the weights ``(3 C', C)`` and biases of queries, keys and values, which timm keeps in three ways."""
    if attention.qkv is None:
        layers = [attention.q_proj, attention.k_proj, attention.v_proj]
        weight = torch.cat([layer.weight for layer in layers])
        biases = [torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
        return weight.detach().clone(), torch.cat(biases).detach().clone()
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if bias is None and getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    if bias is None:
        bias = torch.zeros(len(weight))
    return weight.detach().clone(), bias.detach().clone()


def _constant_tokens(network: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return class and register tokens ``(1, P, C)``, positions added, and the positions ``(1, T, C)`` of patches."""
    tokens = [token for token in (network.cls_token, network.reg_token) if token is not None]
    prefix = torch.cat(tokens, dim=1).detach().clone() if tokens else None
    positions = network.pos_embed
    if positions is None:
        return prefix, None
    positions = positions.detach().clone()
    if prefix is None or network.no_embed_class:
        return prefix, positions
    count = prefix.shape[1]
    return prefix + positions[:, :count], positions[:, count:].contiguous()


def _rotations(network: Any, grid: tuple[int, int], skipped: int) -> tuple[Tensor | None, Tensor | None]:
    """Return sine and cosine of rotary positions ``(blocks or 1, heads or 1, tokens, C / heads)``, if there are any.

    Tokens without a patch are turned by nothing, so that all are computed alike.
    """
    rope = getattr(network, "rope", None)
    if rope is None:
        return None, None
    table = rope.get_embed(shape=list(grid)).detach()
    table = table.reshape((1,) * (4 - table.ndim) + tuple(table.shape))
    sine, cosine = table.float().chunk(2, dim=-1)
    still = (*sine.shape[:2], skipped, sine.shape[3])
    return torch.cat([torch.zeros(still), sine], dim=2), torch.cat([torch.ones(still), cosine], dim=2)
