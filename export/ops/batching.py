"""What lets a custom torch operator be mapped over a batch of weights (`torch.vmap`), as a routed graph does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register_batching(op: Any, batched: Callable[..., Any]) -> None:
    """Map the operator by ``batched``, whose tensors have the batch in front; plain operators stand in its place."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        moved = [_in_front(one, axis, info.batch_size) for one, axis in zip(arguments, in_dims, strict=True)]
        found = batched(*moved)
        return found, (0,) * len(found) if isinstance(found, tuple) else 0

    op.register_vmap(rule)


def _in_front(argument: Any, axis: int | None, size: int) -> Any:
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.expand(size, *argument.shape) if axis is None else argument.movedim(axis, 0)
