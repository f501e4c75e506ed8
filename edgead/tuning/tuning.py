"""The pictures that ``edgead tune`` compares combinations by; planting defects takes SciPy, and nothing of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgead.data import open_category
from edgead.evaluation.validation_normals import find_normals, read_training_record
from edgead.probes import KINDS, plant_in_region, read_scene
from edgead.runtime.device.tuning.evaluation import Picture
from edgead.runtime.errors import BackendUnavailable, DataError
from edgead.runtime.imaging.decode import ALL_BITS, find_images, read_image
from edgead.runtime.imaging.roi import Region

# Neither all nor none of the defects should be found, so that models can differ; as a budget of ``edgead fit`` does.
STRENGTH = 0.8
MOST_NORMALS = 24
_COPIES = 3  # of each good picture


def find_good(bundles: Sequence[str | Path], folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the good pictures to plant defects on, and the bundles that do not say what they were trained on.

    Args:
        bundles: none of them may have been trained on the pictures.
        folders: folders of normal images, CSV lists, or categories with ``validation/good``.

    Raises:
        DataError: a folder is missing or empty, or a bundle was trained on it.
        BundleError: a bundle is damaged.
        BackendUnavailable: there is no SciPy to plant defects with.
    """
    if folders and find_spec("scipy") is None:
        raise BackendUnavailable(
            "planting defects on the good parts of --normals takes scipy, which is not installed; "
            "run: pip install scipy (or leave --normals out)"
        )
    records = [read_training_record(bundle) for bundle in bundles]
    found: list[Path] = []
    for folder in folders:
        category = open_category(folder, train_only=True)
        for record in records:
            normals = find_normals(category, record)
        found += [sample.path for sample in normals.samples]
    return found, [record.name for record in records if record.fingerprints is None] if folders else []


def good_pictures(
    files: Sequence[Path], region: Region | None, seed: int = 0, bits: int = ALL_BITS
) -> Iterator[Picture]:
    """Yield good pictures, at most `MOST_NORMALS` of them drawn by the seed, and after each its painted copies.

    Args:
        files: at least 2.
        region: what the bundles judge of a picture; defects lie in it.
        seed: of the draw, and of the places and shapes of defects.
        bits: of 16-bit files, as the bundles read them.

    Raises:
        DataError: an unreadable file, or not one picture on which a defect can be painted.
    """
    drawn = np.random.default_rng(seed).permutation(len(files))[:MOST_NORMALS]
    owners, why = 0, ""
    for number, index in enumerate(sorted(drawn.tolist())):
        file = files[index]
        image, name = read_image(file, bits), str(file)
        yield Picture(name, image, "good")
        scene = read_scene(image if region is None else np.ascontiguousarray(region.cut(image)))
        copies = 0
        # Other kinds first on each picture, so that all of them are there though a picture shows few.
        for kind in np.roll(KINDS, -_COPIES * number).tolist():
            if copies == _COPIES:
                break
            try:
                painted, _ = plant_in_region(image, region, kind, seed + number, STRENGTH, scene)
            except DataError as error:
                why = why or f" ({error})"
                continue  # the picture shows no part, or is too uniform for this kind
            copies += 1
            yield Picture(f"{name} with a planted {kind} defect", painted, "planted", name)
        owners += copies > 0
    if owners < 2:
        raise DataError(
            f"defects could be painted on {owners} of {len(drawn)} good pictures{why}, and comparing takes 2; "
            "give more or larger ones with --normals DIR"
        )


def other_pictures(paths: Sequence[Path], bits: int = ALL_BITS) -> Iterator[Picture]:
    """Yield pictures of which nobody says what they show; folders are searched. Errors as `find_images`."""
    for file in find_images(paths):
        yield Picture(str(file), read_image(file, bits))
