"""References are pictures like a camera's: good, and not those that the model was fitted on."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.data import open_category
from edgead.data.training_images import KeptImages, second_shot
from edgead.fitting import fit
from edgead.runtime.imaging.decode import decode_image, read_image


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_references_lie_where_unseen_parts_do(made_images: Path) -> None:
    """PaDiM's distances to images that it was fitted on are near zero; INT8 moves those many times as far."""
    parts = made_images / "plate"
    model = fit([parts], detector="padim", size=128)
    exportable, backend = model.exportable("plate"), model.exportable("plate").torch_backend()

    def score(image: np.ndarray) -> float:
        return float(backend.run(exportable.prepare(image)[None]).score[0])

    seen = [score(read_image(sample.path)) for sample in open_category(parts, train_only=True).train[:4]]
    good = [score(decode_image(data, name)) for name, data in model.references if name.startswith("good-")]
    assert min(good) > 3 * max(seen)
    assert max(good) < model.threshold.value


def test_a_model_that_holds_photos_out_shows_them_as_they_are(made_images: Path) -> None:
    category = open_category(made_images / "figure", train_only=True)
    order = np.random.default_rng(3).permutation(len(category.train))[:4]
    photos = [read_image(category.train[index].path) for index in sorted(order)]
    found = dict(KeptImages(category, 3, seen=False).references())
    moved = dict(KeptImages(category, 3).references())
    for number, photo in enumerate(photos):
        assert np.array_equal(pixels(found[f"good-{number}.png"]), photo)
        assert not np.array_equal(pixels(moved[f"good-{number}.png"]), photo)


@pytest.mark.parametrize("shape", [(300, 400, 3), (33, 32, 3), (32, 900, 3)])
def test_a_second_shot_has_the_picture_s_size(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = second_shot(image, 7)
    assert found.shape == shape
    assert found.dtype == np.uint8
    assert np.array_equal(found, second_shot(image, 7))
    assert not np.array_equal(found, second_shot(image, 8))


def test_a_second_shot_moves_the_part_a_little() -> None:
    image = np.full((200, 200, 3), 40, np.uint8)
    image[90:110, 90:110] = 220
    distances = []
    for seed in range(20):
        rows, columns = np.nonzero(second_shot(image, seed)[..., 0] > 130)
        distances.append(np.hypot(rows.mean() - 99.5, columns.mean() - 99.5))
    assert max(distances) <= 0.02 * 200 * np.sqrt(2) + 1
    assert np.median(distances) > 1
