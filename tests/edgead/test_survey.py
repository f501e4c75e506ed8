"""Copies among training images, and images unlike the rest, on real solar cells."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgead.data import open_category
from edgead.data.survey import survey
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.preprocess import resize


@pytest.fixture(scope="module")
def cells(made_images: Path) -> list[np.ndarray]:
    category = open_category(made_images / "broken", train_only=True)
    return [resize(read_image(sample.path), 256, 256) for sample in category.train[:40]]


def look(images):
    return survey(images, [(300, 300)] * len(images))


def compressed(image, quality):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def test_different_parts_are_no_copies_and_none_is_odd(cells):
    found = look(cells)
    assert found.copies == []
    assert found.parts == len(cells)
    assert found.odd == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: np.clip(image * 1.1 + 4, 0, 255).astype(np.uint8),
        lambda image: compressed(image, 100),
    ],
    ids=["equal", "brighter", "compressed"],
)
def test_copies_are_one_group(cells, change):
    found = look([*cells, change(cells[3]), change(cells[3]), change(cells[7])])
    assert found.copies == [[3, 40, 41], [7, 42]]
    assert found.parts == len(cells)
    assert found.groups[3] == found.groups[40]


def test_a_set_of_copies_of_few_parts_has_few_parts():
    random = np.random.default_rng(0)
    parts = [random.integers(90, 160, (64, 64, 3), dtype=np.uint8) for _ in range(5)]
    assert look([part for part in parts for _ in range(6)]).parts == 5
    assert look([parts[0]] * 4).parts == 1
    assert look(parts[:2]).parts == 2


def test_what_is_unlike_the_rest_is_named_with_the_values(cells):
    black, blurred = np.zeros_like(cells[0]), np.full_like(cells[0], 120)
    found = look([*cells, black, blurred])
    assert {one.index for one in found.odd} == {40, 41}
    assert all("shows nothing" in one.why for one in found.odd)


def test_an_image_far_too_bright_or_blurred_is_named_with_the_values():
    random = np.random.default_rng(0)
    parts = [random.integers(90, 160, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    found = look([*parts, parts[0] + 60, np.asarray(Image.fromarray(parts[1]).resize((40, 40)).resize((64, 64)))])
    assert [one.index for one in found.odd] == [20, 21]
    assert found.odd[0].why.startswith("its brightness is 18")
    assert "of the others 12" in found.odd[0].why
    assert found.odd[1].why.startswith("its focus is")


def test_sizes_are_not_odd_where_most_images_have_their_own(cells):
    sizes = [(200 + index, 300) for index in range(len(cells))]
    assert not [odd for odd in survey(cells, sizes).odd if "pixels" in odd.why]


def test_an_odd_size_is_named_and_two_usual_ones_are_not(cells):
    sizes = [(300, 300)] * 39 + [(48, 64)]
    (odd,) = survey(cells, sizes).odd
    assert (odd.index, odd.why) == (39, "it has 64x48 pixels, most have 300x300")
    assert survey(cells, [(300, 300)] * 20 + [(310, 300)] * 20).odd == ()


def test_one_sharp_stray_image_makes_no_others_copies(cells):
    board = np.kron(np.indices((32, 32)).sum(axis=0) % 2, np.ones((8, 8)))[:, :, None] * np.full(3, 255)
    assert look([*cells[:10], board.astype(np.uint8)]).copies == []
