"""The pose of a part: found, undone exactly, refused where it is not there, and drawn back where it was."""

from __future__ import annotations

import ast
import io
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.backends import BackendInfo
from edgead.runtime.bundle.align_section import AlignSection
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision, Frame, Inference
from edgead.runtime.imaging.alignment import Alignment, Found, PartNotFound, decode_template, encode_template, warp
from edgead.runtime.imaging.heatmap import heat
from edgead.runtime.imaging.otsu import otsu
from edgead.runtime.imaging.pose import TURN, UNIT, Pose, part_picture, sines, small_size
from edgead.runtime.imaging.roi import Box, Region
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.inspector import Inspector
from tests import aarch64
from tests.parts import DARK, GROUND, PART, align_to, digests, draw_part
from tests.waiting import LONG_S

RNG = np.random.default_rng(0)
SIZE = (128, 112)
NOWHERE = np.zeros((1, 1), bool)


@pytest.fixture(scope="module")
def align() -> Alignment:
    return align_to(draw_part(SIZE, (64, 56)))


def square(side: int = 64) -> Alignment:
    """Nothing is looked for: canvas, window and network have one size, and everything is judged."""
    everything = np.full((96, 96), 255, np.uint8)
    return Alignment((side, side), (side, side), (0, 0, side, side), everything, everything, everything, 1, True)


def found(x: float, y: float, angle: int) -> Found:
    return Found(Pose(int(x * UNIT), int(y * UNIT), angle, 1000), np.zeros(3, np.uint8))


# Numbers


def test_sines_are_the_nearest_whole_numbers():
    table = sines()
    assert table.tolist() == [round((1 << 14) * math.sin(2 * math.pi * index / TURN)) for index in range(TURN)]
    assert table[[0, TURN // 4, TURN // 2, 3 * TURN // 4]].tolist() == [0, 1 << 14, 0, -(1 << 14)]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_quarter_turns_are_exact(quarters):
    canvas = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    turned = np.ascontiguousarray(np.rot90(canvas, -quarters))  # clockwise, as a part lies that is turned so
    undone = square().undo(turned, found(32, 32, quarters * TURN // 4), 64, 64)
    assert np.array_equal(undone, canvas)


def test_moves_by_whole_pixels_are_exact_and_the_border_is_repeated():
    canvas = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    undone = square().undo(canvas, found(32 + 5, 32 - 3, 0), 64, 64)
    padded = np.pad(canvas, ((3, 0), (0, 5), (0, 0)), "edge")
    assert np.array_equal(undone, padded[:64, 5:])


def test_pixels_are_what_the_rule_says_one_by_one():
    canvas = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    x, y = (RNG.integers(-(5 << 16), 46 << 16, (12, 16)).astype(np.int32) for _ in range(2))
    plain = RNG.random((12, 16)) < 0.2
    got = warp(canvas, (x, y), plain, np.array([1, 2, 3], np.uint8))
    for row, column in np.ndindex(12, 16):
        if plain[row, column]:
            assert got[row, column].tolist() == [1, 2, 3]
            continue
        at_x = min(max(int(x[row, column]) - (1 << 15), 0), 39 << 16)
        at_y = min(max(int(y[row, column]) - (1 << 15), 0), 29 << 16)
        left, top, right, down = at_x >> 16, at_y >> 16, at_x >> 10 & 63, at_y >> 10 & 63
        next_x, next_y = min(left + 1, 39), min(top + 1, 29)
        for channel in range(3):
            upper = int(canvas[top, left, channel]) * (64 - right) + int(canvas[top, next_x, channel]) * right
            lower = int(canvas[next_y, left, channel]) * (64 - right) + int(canvas[next_y, next_x, channel]) * right
            assert got[row, column, channel] == (upper * (64 - down) + lower * down + 2048) >> 12


def test_otsu_parts_two_heaps():
    histogram = np.zeros(256, np.int64)
    histogram[10:15], histogram[90:100] = 300, 40
    assert otsu(histogram) == (14, 89)
    assert otsu(np.array([0, 4, 1, 0, 0, 5])) == (2, 4)
    low, high = otsu(np.eye(256, dtype=np.int64)[7] * 1000)
    assert 0 <= low <= high < 256


# Poses


@pytest.mark.parametrize("colours", [(PART, DARK, GROUND), ((200, 190, 30), (250, 250, 250), (20, 24, 30))])
def test_the_pose_is_found_wherever_the_part_lies_and_however_it_is_turned(colours):
    start = draw_part(SIZE, (64, 56), colours=colours)
    align = align_to(start)
    home = align.find(align.to_canvas(start)).pose
    assert home.angle in (0, 1, TURN - 1)
    for number in range(24):
        angle, move = number * 43 + 5, (number % 5 * 4 - 8, number % 3 * 6 - 6)
        frame = draw_part(SIZE, (64 + move[0], 56 + move[1]), angle, colours=colours)
        pose = align.require(align.to_canvas(frame)).pose
        wrong = (pose.angle - angle + TURN // 2) % TURN - TURN // 2
        assert abs(wrong) <= 4, f"{wrong * 360 / TURN:.1f} degrees"
        undone = View(112, 128, align=align).prepare(frame).astype(int)
        near = slice(30, 82), slice(24, 104)
        assert np.abs(undone[near] - start.astype(int)[near]).mean() < 6


def test_frames_of_every_layout_are_aligned_alike(align):
    frame = draw_part(SIZE, (60, 60), 300)
    view = View(64, 96, align=align)
    assert np.array_equal(view.prepare(frame), view.prepare(np.ascontiguousarray(frame[:, :, ::-1]), "bgr"))
    grey = np.ascontiguousarray(frame[:, :, 0])
    assert np.array_equal(view.prepare(grey, "gray"), view.prepare(np.repeat(grey[:, :, None], 3, axis=2)))


def test_two_ends_that_look_alike_are_told_apart_by_their_grey():
    align = align_to(draw_part(SIZE, (64, 56), shape="bar"))
    for angle in range(0, TURN, 73):
        pose = align.find(align.to_canvas(draw_part(SIZE, (64, 56), angle, shape="bar"))).pose
        assert abs((pose.angle - angle + TURN // 2) % TURN - TURN // 2) <= 4


def test_a_round_part_is_moved_and_never_turned():
    align = align_to(draw_part(SIZE, (64, 56), shape="disc"), turns=False)
    frames = [draw_part(SIZE, (64 + move, 56 - move), 7 * move, shape="disc") for move in range(-9, 10)]
    assert {align.require(align.to_canvas(frame)).pose.angle for frame in frames} == {0}


def test_what_is_not_there_is_not_found(align):
    ground = draw_part(SIZE, (999, 999))
    other = draw_part(SIZE, (34, 60), 256)
    two = draw_part(SIZE, (94, 50), 256, picture=other)
    frames = {
        "nothing": ground,
        "noise": RNG.integers(0, 256, ground.shape, dtype=np.uint8),
        "black": np.zeros_like(ground),
        "two": two,
        "cut off": draw_part(SIZE, (126, 56)),
        "another": draw_part(SIZE, (64, 56), shape="disc"),
    }
    assert align.find(align.to_canvas(other)).pose.overlap > 800
    for name, frame in frames.items():
        with pytest.raises(PartNotFound, match=r"^part not found: it overlaps by 0\.\d+ .*, needed are 0\.600"):
            print(name, View(64, 64, align=align).prepare(frame))


def test_a_part_that_only_touches_the_border_is_found(align):
    frame = draw_part(SIZE, (37, 56))
    assert align.require(align.to_canvas(frame)).pose.angle in (0, 1, TURN - 1)


def test_far_from_the_part_all_is_as_plain_as_the_background(align):
    near = np.zeros((96, 96), np.uint8)
    near[40:56] = 255
    one = replace(align, judged=near)
    frame = draw_part(SIZE, (64, 56))
    dusty = frame.copy()
    dusty[90:92, 60:62] = 0
    view = View(112, 128, align=one)
    assert not np.array_equal(View(112, 128, align=align).prepare(frame), View(112, 128, align=align).prepare(dusty))
    for picture in (view.prepare(frame), view.prepare(dusty)):
        assert (picture[:40] == picture[0, 0]).all()
        assert (picture[75:] == picture[0, 0]).all()
        assert picture[0, 0].tolist() == list(GROUND)
        assert picture[50:62].std() > 20


# The same everywhere


DIGESTS = ["877ade84d7cc3a98", "8a248772c2f73eb5", "bc6015f49c026fd2", 731, 661, 393, 649, 190, 186, 180]


def test_aligned_bytes_are_those_of_every_other_processor():
    """Made on x86-64. Whoever computes others has another resize, another pose or another warp."""
    assert digests() == DIGESTS


@pytest.mark.skipif(aarch64.missing() is not None, reason=str(aarch64.missing()))
def test_an_arm_processor_gives_the_same_bytes():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*aarch64.command("cortex-a76"), "-c", "from tests.parts import digests; print(digests())"],
        env={**os.environ, "PYTHONPATH": aarch64.path(root)},
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == DIGESTS


# Files


def test_templates_come_back_as_they_went(align):
    section = AlignSection.from_alignment(align)
    again = section.to_alignment(encode_template(align))
    assert align.same(again)
    assert not align.same(None)
    assert not align.same(replace(align, minimum=601))
    assert not align.same(replace(align, grey=255 - align.grey))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        png(np.zeros((96, 96), np.uint8)),
        png(np.zeros((288, 96, 3), np.uint8)),
        png(np.zeros((3 * 194, 194), np.uint8)),
        png(np.zeros((288, 96), np.uint16)),
    ],
)
def test_what_is_no_template_is_refused(content):
    with pytest.raises(DataError, match=r"template\.png is not a readable image|a template is grey"):
        decode_template(content, "template.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": np.zeros((96, 96), np.uint8)}, "shows no part"),
        ({"template": np.ones((95, 95), np.uint8)}, "square"),
        ({"grey": np.ones((94, 94), np.uint8)}, "square"),
        ({"judged": np.ones((94, 96), np.uint8)}, "square"),
        ({"canvas": (0, 112)}, "no reduced frame"),
        ({"canvas": (129, 112)}, "no reduced frame"),
        ({"window": (0, 0, 0, 10)}, "does not lie about"),
        ({"window": (300, 0, 10, 10)}, "does not lie about"),
        ({"window": (0, 0, 257, 10)}, "does not lie about"),
        ({"window": (100, 0, 100, 10)}, "does not lie about"),
        ({"minimum": 0}, "least overlap"),
        ({"minimum": 1001}, "least overlap"),
    ],
)
def test_numbers_that_do_not_belong_together_are_refused(align, change, message):
    with pytest.raises(ConfigError, match=message):
        replace(align, **change)


GOOD: dict[str, Any] = {
    "rule": "pose-overlap/1",
    "frame_width": 128,
    "frame_height": 112,
    "canvas_width": 128,
    "canvas_height": 112,
    "window_x": -2,
    "window_y": 0,
    "window_width": 128,
    "window_height": 112,
    "minimum": 600,
    "turns": True,
    "template": "template.png",
}


def test_a_manifest_says_nothing_of_alignment_where_there_is_none(make_manifest):
    """So that bundles without it are, to the byte, those of versions that know none."""
    assert b"align" not in make_manifest().to_json()
    wanted = {"height": 8, "width": 10, "resize": "reduce-bilinear/1", "align": GOOD}
    assert make_manifest(input=wanted).model_dump(mode="json")["input"]["align"] == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "pose-overlap/2"},
        {"minimum": 0},
        {"minimum": 1001},
        {"minimum": 0.7},
        {"turns": 1},
        {"frame_width": 0},
        {"frame_width": 1 << 20},
        {"canvas_height": 9000},
        {"window_x": 9000},
        {"window_width": 0},
        {"template": "../template.png"},
        {"template": "model.fp32.onnx"},
        {"scale": 2},
    ],
)
def test_hostile_alignments_are_refused(make_manifest, change):
    wanted = {"height": 8, "width": 10, "resize": "reduce-bilinear/1", "align": {**GOOD, **change}}
    with pytest.raises(ValueError, match=r"input\.align"):
        make_manifest(input=wanted)


def test_alignment_goes_with_neither_tiles_nor_masks(make_manifest, align):
    common = {"height": 8, "width": 10, "resize": "reduce-bilinear/1", "align": GOOD}
    with pytest.raises(ValueError, match="neither tiles nor a mask"):
        make_manifest(input={**common, "tiles": {"rows": 2, "columns": 2, "overlap": 1}})
    region = {"frame_width": 128, "frame_height": 112, "x": 0, "y": 0, "width": 128, "height": 112}
    with pytest.raises(ValueError, match="neither tiles nor a mask"):
        make_manifest(input={**common, "region": {**region, "mask": "mask.png"}})
    with pytest.raises(ConfigError, match="neither tiles nor a mask"):
        View(64, 64, None, Tiles(2, 2, 1, (8, 8)), align)
    with pytest.raises(ConfigError, match="aligned on another region"):
        View(64, 64, Region((200, 200), Box(0, 0, 100, 100)), None, align)


# Judging


class Peak:
    """A network whose map is the brightest red of each cell."""

    def run(self, images: np.ndarray) -> Inference:
        cells = images[..., 0].reshape(len(images), 14, 8, 16, 8).max(axis=(2, 4)).astype(np.float32)
        return Inference(cells.max(axis=(1, 2)), cells)

    def describe(self) -> BackendInfo:
        return BackendInfo("peak", "numpy", "fp32", "cpu", 1, "1")

    def close(self) -> None:
        pass


def inspector(align: Alignment, threshold: float = 400.0, region: Region | None = None) -> Inspector:
    return Inspector(Peak(), height=112, width=128, threshold=threshold, align=align, region=region)


def test_a_part_that_is_not_found_is_not_inspected_and_the_others_are(align):
    frames = [draw_part(SIZE, (64, 56), 90), draw_part(SIZE, (999, 999)), draw_part(SIZE, (60, 50), 900)]
    with inspector(align) as judge:
        results = judge.inspect_batch([Frame(frame, n, n, "cam") for n, frame in enumerate(frames)])
        alone = judge(frames[1])
    assert [one.decision for one in results] == [Decision.OK, Decision.NOT_INSPECTED, Decision.OK]
    assert results[1].reason.startswith("part not found")
    assert math.isnan(results[1].score)
    assert results[1].map is None
    assert alone.decision is Decision.NOT_INSPECTED
    assert (results[0].placement is None, results[1].placement) == (False, None)


def test_frames_of_another_size_are_refused(align):
    with inspector(align) as judge, pytest.raises(DataError, match="frame is 64x64, but the model was aligned on"):
        judge(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("angle", [0, 100, 256, 555, 900])
@pytest.mark.parametrize("cut", [False, True])
def test_heat_is_drawn_where_the_defect_is_on_the_frame(align, angle, cut):
    frame = draw_part(SIZE, (66, 58), angle)
    sine, cosine = int(sines()[angle]), int(sines()[(angle + TURN // 4) % TURN])
    spot = round(66 + 20 * cosine / (1 << 14)), round(58 + 20 * sine / (1 << 14))  # on the shaft
    frame[spot[1] - 4 : spot[1] + 4, spot[0] - 4 : spot[0] + 4] = 255
    region = None
    if cut:  # the part lies within a region of a larger frame
        whole = np.full((150, 160, 3), 90, np.uint8)
        whole[30:142, 20:148] = frame
        frame, spot, region = whole, (spot[0] + 20, spot[1] + 30), Region((160, 150), Box(20, 30, *SIZE))
    with inspector(align, 200.0, region) as judge:
        result = judge(frame)
    level = heat(result, *frame.shape[:2])
    hot = np.argwhere(level >= level.max() - 1).mean(axis=0)
    assert np.hypot(hot[0] - spot[1], hot[1] - spot[0]) < 6
    if cut:
        outside = np.ones(level.shape, bool)
        outside[30:142, 20:148] = False
        assert level[outside].max() == 0


def test_small_pictures_keep_their_form():
    assert small_size((1280, 1024)) == (96, 77)
    assert small_size((96, 40)) == (96, 40)
    assert small_size((4096, 16)) == (96, 1)
    part = part_picture(np.zeros((5, 7, 3), np.uint8), (7, 5))
    assert part.part.shape == (5, 7)
    assert not part.part.any()
