"""Forged defects that learned detectors are trained on; probes that judge them come from `edgead.probes`.

Every forger takes the index of a training image and a generator, and returns the forged image ``(h, w, 3)`` uint8 RGB
and its mask ``(h, w)`` bool. Nothing but the generator decides what it draws, so equal generators give equal forgeries.
"""

from __future__ import annotations

from edgead.synthesis.cutpaste import CutPasteForger
from edgead.synthesis.forger import Forger, Image, Mask, check_pool, is_grey
from edgead.synthesis.mixing import MixForger
from edgead.synthesis.salient import SalientForger
from edgead.synthesis.shapes import ShapeForger
from edgead.synthesis.textures import FolderTextures, ProceduralTextures, Textures, open_textures

__all__ = [
    "CutPasteForger",
    "FolderTextures",
    "Forger",
    "Image",
    "Mask",
    "MixForger",
    "ProceduralTextures",
    "SalientForger",
    "ShapeForger",
    "Textures",
    "check_pool",
    "is_grey",
    "open_textures",
]
