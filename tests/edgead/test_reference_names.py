"""What a reference shows is said by its name, which one place makes and reads."""

from __future__ import annotations

import pytest

from edgead.probes import STRUCTURAL
from edgead.runtime.bundle.reference_names import ReferenceName


@pytest.mark.parametrize("label", ["0", "07", "plate-3", "m6-screw-12"])
@pytest.mark.parametrize("defect", STRUCTURAL)
def test_names_are_read_as_they_were_made(label: str, defect: str) -> None:
    normal, planted = ReferenceName.normal(label), ReferenceName.planted(label, defect)
    assert ReferenceName.parse(normal.name) == normal
    assert ReferenceName.parse(planted.name) == planted
    assert planted.source == normal.name
    assert planted.defect == defect


@pytest.mark.parametrize("name", ["image-0.png", "a/b/good.png", "probes.png", "Good-1.png"])
def test_an_image_of_the_user_is_neither_normal_nor_planted(name: str) -> None:
    assert ReferenceName.parse(name).kind == "other"


def test_names_of_the_first_version_are_read() -> None:
    assert ReferenceName.parse("good-0.png").kind == "normal"
    assert ReferenceName.parse("probe-screw-0-scratch.png") == ReferenceName(
        "probe-screw-0-scratch.png", "planted", "scratch", "good-screw-0.png"
    )
    assert ReferenceName.parse("probe-0.png").source is None
