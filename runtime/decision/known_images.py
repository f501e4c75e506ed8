"""Which images a model was fitted on: a few bytes of each picture, so that nobody judges a model by what it learned."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

# In a manifest's provenance: base64 of the digests, one after another.
PROVENANCE_KEY = "known_images"
_BYTES = 6  # of a digest: a thousand images are taken for one of a thousand others once in 280 million times

_MOST = 20_000  # images; a manifest has a limit
PACKED_BYTES = 8  # that an image takes in `pack_known`


def fingerprint(picture: NDArray[np.uint8]) -> bytes:
    """Return the digest of a picture as the network gets it, which does not depend on the processor."""
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=_BYTES).digest()


def pack_known(digests: Iterable[bytes]) -> str:
    """Return digests as text; `unpack_known` gives the set of them."""
    return base64.b64encode(b"".join(sorted(set(digests))[:_MOST])).decode("ascii")


def unpack_known(provenance: Mapping[str, object]) -> frozenset[bytes]:
    """Return the digests in a bundle's provenance; none of a bundle of an earlier version."""
    text = provenance.get(PROVENANCE_KEY)
    if not isinstance(text, str):
        return frozenset()
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return frozenset()
    return frozenset(data[start : start + _BYTES] for start in range(0, len(data), _BYTES))
