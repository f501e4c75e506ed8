"""Wrong calls: an error code and a line each, whatever is passed, and never undefined behaviour."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.runtime.errors import ConfigError
from edgead.runtime.inspection.inspector import Inspector
from tests.runtime.capi.bundles import graph, with_references, write
from tests.runtime.capi.wrapper import CError, CInspector, FrameStruct, Library, Options, Report, Shape, frame_of
from tests.waiting import LONG_S

PICTURE = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    images = {f"{seed}.png": np.random.default_rng(seed).integers(0, 90, (16, 24, 3), np.uint8) for seed in range(4)}
    return write(tmp_path / "x.edgead", 16, 24, files=with_references(16, 24, images))


@pytest.fixture
def inspector(capi: Library, bundle: Path) -> Iterator[CInspector]:
    with capi.open(bundle) as opened:
        yield opened


def refused(capi: Library, status: int, name: str, *words: str) -> None:
    line = capi.raw.edgead_last_error().decode()
    assert capi.name(status) == name, line
    assert line
    assert "\n" not in line
    for word in words:
        assert word in line


def test_every_null_pointer_is_refused(capi: Library, bundle: Path, inspector: CInspector) -> None:
    raw, handle, result = capi.raw, c_uint64(), c_uint64()
    frame = frame_of(PICTURE)
    for call, name in (
        (lambda: raw.edgead_open(None, None, byref(handle)), "path"),
        (lambda: raw.edgead_open(str(bundle).encode(), None, None), "inspector"),
        (lambda: raw.edgead_inspect(inspector.handle, None, byref(result)), "frame"),
        (lambda: raw.edgead_inspect(inspector.handle, byref(frame), None), "result"),
        (lambda: raw.edgead_prepare(inspector.handle, byref(frame), None, 10**6), "pixels"),
        (lambda: raw.edgead_prepare(inspector.handle, None, PICTURE.ctypes.data, 10**6), "frame"),
        (lambda: raw.edgead_input_shape(inspector.handle, None), "shape"),
        (lambda: raw.edgead_describe(inspector.handle, None, 1000, None), "text"),
    ):
        refused(capi, call(), "NULL_POINTER", name)
    refused(
        capi, raw.edgead_inspect(inspector.handle, byref(frame_of(PICTURE, data=None)), byref(result)), "NULL_POINTER"
    )
    grey = frame_of(np.ascontiguousarray(PICTURE[:, :, 0]), "nv12", chroma_stride=60)
    refused(capi, raw.edgead_inspect(inspector.handle, byref(grey), byref(result)), "NULL_POINTER", "chroma")
    assert not raw.edgead_inspect(inspector.handle, byref(frame), byref(result))
    for name in ("decision", "score", "threshold", "category", "reason"):
        refused(capi, getattr(raw, f"edgead_result_{name}")(result, None), "NULL_POINTER")
    refused(capi, raw.edgead_result_map(result, None, None, None), "NULL_POINTER")
    refused(capi, raw.edgead_result_timings(result, None, None, None), "NULL_POINTER")
    assert not raw.edgead_result_close(result)
    assert not raw.edgead_check(inspector.handle, None)


def test_every_struct_says_its_size(capi: Library, bundle: Path, inspector: CInspector) -> None:
    raw, handle = capi.raw, c_uint64(77)
    for size in (0, 1, 8, ctypes.sizeof(FrameStruct) + 8, 2**32 - 1):
        frame = frame_of(PICTURE)
        frame.struct_size = size
        refused(
            capi, raw.edgead_inspect(inspector.handle, byref(frame), byref(handle)), "WRONG_STRUCT_SIZE", "edgead_frame"
        )
        options = Options(size)
        refused(
            capi, raw.edgead_open(str(bundle).encode(), byref(options), byref(handle)), "WRONG_STRUCT_SIZE", "options"
        )
        refused(capi, raw.edgead_input_shape(inspector.handle, byref(Shape(size))), "WRONG_STRUCT_SIZE", "edgead_shape")
        refused(capi, raw.edgead_check(inspector.handle, byref(Report(size))), "WRONG_STRUCT_SIZE", "report")
    assert handle.value == 77


@pytest.mark.parametrize(
    ("changes", "name", "word"),
    [
        ({"layout": 0}, "FRAME_LAYOUT", "layout 0"),
        ({"layout": 5}, "FRAME_LAYOUT", "layout 5"),
        ({"layout": -1}, "FRAME_LAYOUT", "layout -1"),
        ({"width": 0}, "FRAME_SIZE", "0x40"),
        ({"height": -3}, "FRAME_SIZE", "60x-3"),
        ({"width": 65536}, "FRAME_SIZE", "65536"),
        ({"height": 2**31 - 1}, "FRAME_SIZE", "pixels a side"),
        ({"stride": 179}, "FRAME_STRIDE", "179"),
        ({"stride": 0}, "FRAME_STRIDE", "0"),
        ({"stride": -180}, "FRAME_STRIDE", "-180"),
        ({"stride": 2**62}, "FRAME_STRIDE", "bytes"),
        ({"reserved": 1}, "WRONG_OPTION", "reserved"),
        ({"layout": 4, "chroma": PICTURE.ctypes.data, "chroma_stride": 59}, "FRAME_STRIDE", "chroma_stride is 59"),
        ({"layout": 4, "chroma": PICTURE.ctypes.data, "chroma_stride": 60, "colors": 2}, "FRAME_LAYOUT", "standard 2"),
    ],
)
def test_a_wrong_frame_is_refused(
    capi: Library, inspector: CInspector, changes: dict[str, Any], name: str, word: str
) -> None:
    frame, result = frame_of(PICTURE), c_uint64(55)
    for field, value in changes.items():
        setattr(frame, field, value)
    refused(capi, capi.raw.edgead_inspect(inspector.handle, byref(frame), byref(result)), name, word)
    assert result.value == 55
    assert inspector.inspect(frame_of(PICTURE)).decision == "ANOMALY"


def test_what_is_asked_for_must_be_there(capi: Library, bundle: Path, tmp_path: Path) -> None:
    for asked, name, line in (
        ({"precision": "fp23"}, "UNKNOWN_PRECISION", f"{bundle} has no precision 'fp23'. Did you mean 'fp32'?"),
        ({"precision": "half"}, "UNKNOWN_PRECISION", f"{bundle} has no precision 'half'. Known: fp32."),
        ({"backend": "tensorrt", "library": tmp_path}, "UNKNOWN_BACKEND", "not 'tensorrt'"),
        ({"threads": -1}, "WRONG_OPTION", "threads must be at least 1, got -1"),
        ({"threads": 1025}, "WRONG_OPTION", "1025"),
        ({"library": tmp_path / "none.so"}, "WRONG_OPTION", "has loaded onnxruntime from"),
    ):
        with pytest.raises(CError) as caught:
            capi.open(bundle, **asked)  # type: ignore[arg-type]
        assert caught.value.status == name
        assert line in caught.value.message
    for precision in ("fp23", "half"):
        with pytest.raises(ConfigError) as python:
            Inspector.open(bundle, backend="onnxruntime", precision=precision)
        with pytest.raises(CError) as c:
            capi.open(bundle, precision=precision)
        assert c.value.message == str(python.value)


def test_a_closed_handle_is_known_as_such(capi: Library, bundle: Path) -> None:
    raw, result = capi.raw, c_uint64()
    opened = capi.open(bundle)
    frame = frame_of(PICTURE)
    assert not raw.edgead_inspect(opened.handle, byref(frame), byref(result))
    opened.close()
    # Its results stay.
    assert opened._read(result.value).decision == "ANOMALY"
    assert not raw.edgead_result_close(result)
    for handle in (opened.handle, 0, 12345, 2**64 - 1, result.value):
        for call in (
            lambda: raw.edgead_inspect(handle, byref(frame), byref(c_uint64())),  # noqa: B023
            lambda: raw.edgead_prepare(handle, byref(frame), PICTURE.ctypes.data, 9),  # noqa: B023
            lambda: raw.edgead_check(handle, None),  # noqa: B023
            lambda: raw.edgead_close(handle),  # noqa: B023
            lambda: raw.edgead_describe(handle, None, 0, None),  # noqa: B023
        ):
            refused(capi, call(), "CLOSED")
    for handle in (result.value, 0, opened.handle):
        refused(capi, raw.edgead_result_score(handle, byref(c_double())), "CLOSED")
        refused(capi, raw.edgead_result_close(handle), "CLOSED")


def test_buffers_that_are_too_small_say_what_is_needed(capi: Library, inspector: CInspector) -> None:
    raw, needed, text = capi.raw, c_size_t(), ctypes.create_string_buffer(b"unchanged")
    refused(capi, raw.edgead_describe(inspector.handle, text, 10, byref(needed)), "BUFFER_TOO_SMALL", str(needed.value))
    assert text.value == b"unchanged"
    assert needed.value == len(inspector.describe()) + 1
    pixels = np.full(16 * 24 * 3, 9, np.uint8)
    status = raw.edgead_prepare(inspector.handle, byref(frame_of(PICTURE)), pixels.ctypes.data, pixels.size - 1)
    refused(capi, status, "BUFFER_TOO_SMALL", str(pixels.size))
    assert (pixels == 9).all()


def test_the_error_line_belongs_to_its_thread(capi: Library) -> None:
    refused(capi, capi.raw.edgead_close(1), "CLOSED")
    seen: list[bytes] = []
    other = threading.Thread(target=lambda: seen.append(capi.raw.edgead_last_error()))
    other.start()
    other.join()
    assert seen == [b""]


def test_what_is_not_finite_is_not_inspected(capi: Library, tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["planes"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sub", ["cells", "cells"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["nothing"]),
        helper.make_node("ReduceMax", ["nothing", "channel"], ["map"], keepdims=0),
        helper.make_node("ReduceSum", ["map", "both"], ["score"], keepdims=0),
    ]
    path = write(tmp_path / "x.edgead", 16, 24, files={"model.fp32.onnx": graph(16, 24, nodes=nodes)})
    with capi.open(path) as c, Inspector.open(path, backend="onnxruntime") as python:
        result, expected = c.inspect(frame_of(PICTURE)), python(PICTURE)
        assert (result.decision, result.reason) == ("NOT_INSPECTED", "non-finite score")
        assert (str(expected.decision), expected.reason) == (result.decision, result.reason)
        assert np.isnan(result.score)


@pytest.mark.parametrize("wrong", ["size", "name", "no graph"])
def test_a_graph_that_is_none_of_the_manifest_is_refused(capi: Library, tmp_path: Path, wrong: str) -> None:
    data = {"size": graph(20, 24), "name": graph(16, 24).replace(b"images", b"pixels"), "no graph": b"junk"}[wrong]
    path = write(tmp_path / "x.edgead", 16, 24, files={"model.fp32.onnx": data})
    with pytest.raises(CError, match="BACKEND_FAILED"):
        capi.open(path)


def test_a_graph_with_a_batch_of_its_own_gives_the_same(capi: Library, tmp_path: Path) -> None:
    path = write(tmp_path / "x.edgead", 16, 24, files={"model.fp32.onnx": graph(16, 24, batch=3)})
    with capi.open(path) as c, Inspector.open(path, backend="onnxruntime") as python:
        result, expected = c.inspect(frame_of(PICTURE)), python(PICTURE)
        assert result.score == expected.score
        np.testing.assert_array_equal(result.map, expected.map)


def test_the_check_passes_and_can_fail(capi: Library, inspector: CInspector, tmp_path: Path) -> None:
    report = inspector.check()
    assert (report.references, report.worst_difference, report.worst_map_difference) == (4, 0.0, 0.0)
    images = {"a.png": np.full((16, 24, 3), 40, np.uint8)}
    files = with_references(16, 24, images)
    files["references/a.png"] = with_references(16, 24, {"a.png": np.full((16, 24, 3), 90, np.uint8)})[
        "references/a.png"
    ]
    with capi.open(write(tmp_path / "wrong.edgead", 16, 24, files=files)) as opened:
        with pytest.raises(CError, match=r"CHECK_FAILED: a\.png: the score differs by 50, allowed are 0\.0"):
            opened.check()
        # The file is another one by now.
        write(tmp_path / "wrong.edgead", 16, 24, name="other", files=files)
        with pytest.raises(CError, match=r"BUNDLE_ALTERED: .* is not the bundle that was opened"):
            opened.check()
    with (
        capi.open(write(tmp_path / "none.edgead", 16, 24)) as opened,
        pytest.raises(CError, match="no reference images"),
    ):
        opened.check()


def test_one_frame_at_a_time(capi: Library, tmp_path: Path) -> None:
    # So large that others come while it is judged, and until one of them did.
    big = np.zeros((6000, 8000, 3), np.uint8)
    outcomes: set[str] = set()
    with capi.open(write(tmp_path / "x.edgead", 16, 24)) as opened:
        started, met = time.monotonic(), threading.Event()

        def judge() -> None:
            while not met.is_set() and time.monotonic() < started + LONG_S:
                try:
                    outcomes.add(opened.inspect(frame_of(big)).decision)
                except CError as error:
                    outcomes.add(error.status)
                if {"OK", "BUSY"} <= outcomes:
                    met.set()

        threads = [threading.Thread(target=judge) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {"OK", "BUSY"}
        assert opened.inspect(frame_of(PICTURE)).decision == "ANOMALY"


def test_a_forked_process_is_told_to_open_its_own(capi: Library, inspector: CInspector) -> None:
    child = os.fork()
    if child == 0:
        status = capi.raw.edgead_inspect(inspector.handle, byref(frame_of(PICTURE)), byref(c_uint64()))
        os._exit(status)
    assert capi.name(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == "CLOSED"


def test_results_tell_what_there_is_not(capi: Library, inspector: CInspector) -> None:
    result = c_uint64()
    assert not capi.raw.edgead_inspect(inspector.handle, byref(frame_of(PICTURE)), byref(result))
    for name in ("category", "reason"):
        refused(capi, getattr(capi.raw, f"edgead_result_{name}")(result, byref(c_char_p())), "NO_VALUE")
    cells, size = ctypes.POINTER(c_float)(), c_int32()
    assert not capi.raw.edgead_result_map(result, byref(cells), byref(size), byref(size))
    times = [c_double(-1.0) for _ in range(3)]
    assert not capi.raw.edgead_result_timings(result, *map(byref, times))
    assert all(0.0 <= one.value < 60_000.0 for one in times)
    assert not capi.raw.edgead_result_close(result)
