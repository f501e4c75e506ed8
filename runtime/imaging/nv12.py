"""NV12, what hardware decoders and CSI cameras deliver, to RGB in whole numbers: the same bytes on every platform.

With ``y = Y - 16``, ``u = U - 128``, ``v = V - 128`` and the weights below, in units of 2^-16::

    R = clip((weight_y y              + weight_rv v + 32768) >> 16)
    G = clip((weight_y y - weight_gu u - weight_gv v + 32768) >> 16)
    B = clip((weight_y y + weight_bu u              + 32768) >> 16)

Weights are those of ITU-R BT.601 or BT.709 for limited range (Y 16 to 235, U and V 16 to 240), rounded to the nearest
integer. The four pixels of a 2 x 2 block share its U and V as they are: no interpolation, whose rule every decoder has
its own of. The CUDA version is in ``export/kernels/preprocess.cuh``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError, suggest

Standard = Literal["bt601", "bt709"]
_BITS = 16


class Weights(NamedTuple):
    """Units of 2^-16."""

    y: int
    rv: int
    gu: int
    gv: int
    bu: int


WEIGHTS: dict[str, Weights] = {
    "bt601": Weights(y=76309, rv=104597, gu=25675, gv=53279, bu=132201),
    "bt709": Weights(y=76309, rv=117489, gu=13975, gv=34925, bu=138438),
}


def nv12_to_rgb(luma: NDArray[np.uint8], chroma: NDArray[np.uint8], standard: Standard = "bt601") -> NDArray[np.uint8]:
    """Convert a limited-range NV12 frame.

    Args:
        luma: ``(H, W)`` uint8, Y.
        chroma: ``(ceil(H / 2), ceil(W / 2), 2)`` uint8, U before V; one pair for each 2 x 2 block of pixels.
        standard: ``bt601`` (SD, and most cameras) or ``bt709`` (HD video).

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        DataError: wrong shape or dtype. ConfigError: unknown standard.
    """
    if standard not in WEIGHTS:
        raise ConfigError(f"unknown colour standard '{standard}'.{suggest(standard, WEIGHTS)}")
    rows, columns = luma.shape if luma.ndim == 2 else (0, 0)
    expected = (-(-rows // 2), -(-columns // 2), 2)
    if 0 in (rows, columns) or chroma.shape != expected or luma.dtype != np.uint8 or chroma.dtype != np.uint8:
        raise DataError(
            f"an NV12 frame is (H, W) and (H/2, W/2, 2) uint8, got {luma.shape} {luma.dtype} "
            f"and {chroma.shape} {chroma.dtype}"
        )
    weight = WEIGHTS[standard]
    # 2 x 2 blocks, the last row and column cut off where the size is odd.
    pairs = np.repeat(np.repeat(chroma, 2, axis=0)[:rows], 2, axis=1)[:, :columns].astype(np.int32) - 128
    u, v = pairs[:, :, 0], pairs[:, :, 1]
    y = weight.y * (luma.astype(np.int32) - 16) + (1 << (_BITS - 1))
    planes = (y + weight.rv * v, y - weight.gu * u - weight.gv * v, y + weight.bu * u)
    result: NDArray[np.uint8] = np.clip(np.stack(planes, axis=2) >> _BITS, 0, 255).astype(np.uint8)
    return result
