"""What is said of training images of 16 bits a channel, most of which their values leave empty."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgead.runtime.imaging.decode import FEWEST_BITS, look_at_bits

# The command line shows what this logger says as its own warnings.
_log = logging.getLogger("edgead.fit")

_ENOUGH = 1 << 12  # a value that large uses a bit of the upper 4


def warn_of_unused_bits(files: Sequence[Path]) -> None:
    """Warn where the 16-bit files among training images leave the upper 4 bits empty, as cameras of 12 bits do.

    Of such files, read as others are, few grey levels are left: the picture is nearly black.
    """
    found = look_at_bits(files, _ENOUGH)
    if not found.files or found.largest >= _ENOUGH:
        return
    bits = max(found.largest.bit_length(), FEWEST_BITS)
    levels = (found.largest >> FEWEST_BITS) + 1
    many = (
        "1 training image is a 16-bit file" if found.files == 1 else f"{found.files} training images are 16-bit files"
    )
    _log.warning(
        "%s with values up to %d, as %s %d-bit camera gives: only %d grey level%s left of them; "
        "fit with --bits %d (or --bits 16 to keep it so)",
        many,
        found.largest,
        "an" if bits in (8, 11) else "a",
        bits,
        levels,
        " is" if levels == 1 else "s are",
        bits,
    )
