"""Heat maps: the scale is anchored at the threshold, and pictures keep their pixels where nothing is hot."""

from __future__ import annotations

import numpy as np
import pytest

from edgead.runtime.decision.verdict import decide
from edgead.runtime.errors import DataError
from edgead.runtime.frame import Decision, Result
from edgead.runtime.imaging.heatmap import annotate, banner_text, colormap, heat, overlay, pixel_threshold

GREY = np.full((60, 90, 3), 128, np.uint8)
RED = np.array([255, 64, 64])


def result(anomaly_map, threshold=10.0, score=None, **other):
    score = float(np.max(anomaly_map)) if score is None else score
    decision, reason = decide(score, threshold)
    return Result(score, threshold, decision, 0, 0, map=np.asarray(anomaly_map, np.float32), reason=reason, **other)


def flat(value):
    return np.full((6, 9), value)


def spot(value, background=2.0):
    cells = np.full((6, 9), background)
    cells[2:4, 3:6] = value
    return cells


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0), (5.0, 63), (10.0, 127), (10.01, 128), (15.0, 191), (20.0, 255)]
)
def test_same_value_has_the_same_heat_in_every_frame(value, expected):
    # The hottest cell changes from frame to frame; the colour of `value` must not.
    for highest in (value + 1.0, 40.0):
        cells = flat(value)
        cells[0, 0] = highest
        assert heat(result(cells), 60, 90)[40, 60] == pytest.approx(expected, abs=1)
        assert (heat(result(cells), 60, 90)[40, 60] > 127) == (value > 10.0)


def test_good_part_is_calm():
    drawn = overlay(GREY, result(spot(7.0)))
    assert np.abs(drawn.astype(int) - 128).max() < 50
    assert not (drawn == RED).all(axis=2).any()


def test_cold_pixels_are_untouched():
    assert np.array_equal(overlay(GREY, result(flat(4.0))), GREY)


def test_anomaly_is_outlined_where_it_is():
    drawn = overlay(GREY, result(spot(30.0)))
    edge = (drawn == RED).all(axis=2)
    rows, columns = np.nonzero(edge)
    # Cells are 10 pixels; bilinear slopes widen the region by half a cell.
    assert 14 <= rows.min() <= 20
    assert 39 <= rows.max() <= 45
    assert 24 <= columns.min() <= 30
    assert 59 <= columns.max() <= 65
    assert not edge[30, 45]


def test_weighted_scores_keep_decision_and_outline_together():
    cells = spot(8.0)
    assert pixel_threshold(result(cells, threshold=10.0, score=12.0)) < 8.0
    assert pixel_threshold(result(cells, threshold=10.0, score=9.0)) > 8.0
    # Negative scores have no ratio; the distance to the threshold takes its place.
    assert pixel_threshold(result(spot(-3.0, -9.0), threshold=-4.0)) == pytest.approx(-4.0)
    assert (heat(result(spot(-3.0, -9.0), threshold=-4.0), 60, 90) > 127).any()
    assert not (heat(result(spot(-5.0, -9.0), threshold=-4.0), 60, 90) > 127).any()


@pytest.mark.parametrize("threshold", [0.0, -4.0, 1e-6, 1e6])
def test_any_threshold_gives_heat_on_its_own_side(threshold):
    cells = np.linspace(threshold - 1, threshold + 1, 54).reshape(6, 9)
    level = heat(result(cells, threshold=threshold), 6, 9)
    assert np.array_equal(level > 127, cells.astype(np.float32) > pixel_threshold(result(cells, threshold=threshold)))


@pytest.mark.parametrize(
    "broken", [result(flat(np.nan)), Result(np.nan, 10.0, Decision.NOT_INSPECTED, 0, 0), result(flat(1.0), np.inf)]
)
def test_without_a_usable_map_the_picture_stays(broken):
    drawn = overlay(GREY, broken)
    assert np.array_equal(drawn, GREY)
    assert drawn is not GREY
    assert annotate(GREY, broken).shape[1:] == (90, 3)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (480, 640), (33, 2000)])
def test_annotated_picture_has_a_strip_above(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    drawn = annotate(image, result(flat(1.0), category="screw"))
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > size[0]
    assert drawn.shape[1] == size[1]
    assert np.array_equal(drawn[-size[0] :], image)


def test_strip_names_the_decision():
    texts = [banner_text(result(flat(value), category="tile")) for value in (5.0, 15.0, np.nan)]
    assert texts[0] == "OK   5 / 10   tile"
    assert texts[1].startswith("ANOMALY   15 / 10")
    assert texts[2].startswith("NOT_INSPECTED")
    assert "non-finite" in texts[2]
    strips = [annotate(GREY, result(flat(value)))[0, 0].tolist() for value in (5.0, 15.0, np.nan)]
    assert len({tuple(colour) for colour in strips}) == 3
    # Text is drawn: the strip holds white.
    assert (annotate(np.zeros((200, 400, 3), np.uint8), result(flat(5.0)))[:15].max(axis=2) > 200).any()


def test_colormap_is_perceptually_uniform():
    colours = colormap()
    assert colours.shape == (256, 3)
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance) - 16
    steps = np.diff(lightness[8:])
    assert (steps > 0).mean() > 0.97
    assert np.ptp(lightness) > 70
    # Evenly: a quarter of the way up the scale is about a quarter of the way up in lightness.
    assert np.interp(0.5, np.linspace(0, 1, 256), lightness) == pytest.approx(lightness[[0, -1]].mean(), abs=5)


def test_wrong_picture_is_one_clear_error():
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8 RGB, got \(4, 4\)"):
        overlay(np.zeros((4, 4), np.uint8), result(flat(1.0)))
