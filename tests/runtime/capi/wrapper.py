"""libedgead called from Python by ctypes, as its header declares it; the tests hold it against the Python runtime."""

from __future__ import annotations

import ctypes
import math
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LAYOUTS = {"rgb": 1, "bgr": 2, "gray": 3, "nv12": 4}
DECISIONS = ("OK", "ANOMALY", "NOT_INSPECTED")


class Options(ctypes.Structure):
    """edgead_options."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("threads", c_int32),
        ("no_native_code", c_int32),
        ("reserved", c_int32),
        ("precision", c_char_p),
        ("backend", c_char_p),
        ("library", c_char_p),
        ("trust", c_char_p),
    ]


class FrameStruct(ctypes.Structure):
    """edgead_frame."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("layout", c_int32),
        ("data", ctypes.c_void_p),
        ("chroma", ctypes.c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("stride", c_int64),
        ("chroma_stride", c_int64),
        ("colors", c_int32),
        ("reserved", c_int32),
    ]


class Shape(ctypes.Structure):
    """edgead_shape."""

    _fields_ = [
        ("struct_size", c_uint32),
        *((name, c_int32) for name in ("height", "width", "map_height", "map_width", "frame_height", "frame_width")),
    ]


class Report(ctypes.Structure):
    """edgead_check_report."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("references", c_int32),
        ("worst_difference", c_double),
        ("worst_map_difference", c_double),
    ]


class CError(Exception):
    """What a function of the library refused: name of its code, and the line."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class CResult(NamedTuple):
    """What edgead_result_* say; NaN and None where there is nothing."""

    decision: str
    score: float
    threshold: float
    category: str | None
    reason: str | None
    map: NDArray[np.float32] | None


class Library:
    """The functions of a built library."""

    def __init__(self, path: Path) -> None:
        self.raw: Any = ctypes.CDLL(str(path))
        for name in ("version", "last_error", "status_name"):
            getattr(self.raw, f"edgead_{name}").restype = c_char_p
        self.raw.edgead_open.argtypes = [c_char_p, POINTER(Options), POINTER(c_uint64)]
        self.raw.edgead_close.argtypes = self.raw.edgead_result_close.argtypes = [c_uint64]
        self.raw.edgead_inspect.argtypes = [c_uint64, POINTER(FrameStruct), POINTER(c_uint64)]
        self.raw.edgead_prepare.argtypes = [c_uint64, POINTER(FrameStruct), ctypes.c_void_p, c_size_t]
        self.raw.edgead_input_shape.argtypes = [c_uint64, POINTER(Shape)]
        self.raw.edgead_check.argtypes = [c_uint64, POINTER(Report)]
        self.raw.edgead_describe.argtypes = [c_uint64, c_char_p, c_size_t, POINTER(c_size_t)]
        for name in ("decision", "score", "threshold", "category", "reason"):
            getattr(self.raw, f"edgead_result_{name}").argtypes = [c_uint64, ctypes.c_void_p]
        sizes = [POINTER(c_int32)] * 2
        self.raw.edgead_result_map.argtypes = [c_uint64, POINTER(POINTER(c_float)), *sizes]

    def name(self, status: int) -> str:
        """The name of a status, without its prefix."""
        found: bytes = self.raw.edgead_status_name(status)
        return found.decode().removeprefix("EDGEAD_")

    def require(self, status: int) -> None:
        """Raise `CError` for anything but success."""
        if status:
            raise CError(self.name(status), self.raw.edgead_last_error().decode())

    def open(
        self,
        path: Path | str,
        *,
        precision: str | None = None,
        threads: int = 0,
        native: bool = True,
        library: Path | None = None,
        backend: str | None = None,
        trust: Path | str | None = None,
    ) -> CInspector:
        """Open a bundle; library: the backend's, None takes that of the installed wheel."""
        library = wheel_library(backend or "onnxruntime") if library is None else library
        encoded = [None if one is None else str(one).encode() for one in (precision, backend, library, trust)]
        options = Options(ctypes.sizeof(Options), threads, not native, 0, *encoded)
        handle = c_uint64()
        self.require(self.raw.edgead_open(str(path).encode(), byref(options), byref(handle)))
        return CInspector(self, handle.value)


class CInspector:
    """An opened inspector."""

    def __init__(self, library: Library, handle: int) -> None:
        self.library, self.handle = library, handle

    def __enter__(self) -> CInspector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.library.require(self.library.raw.edgead_close(self.handle))

    def shape(self) -> Shape:
        """What the network sees."""
        shape = Shape(ctypes.sizeof(Shape))
        self.library.require(self.library.raw.edgead_input_shape(self.handle, byref(shape)))
        return shape

    def describe(self) -> str:
        """What really runs."""
        text, needed = ctypes.create_string_buffer(1000), c_size_t()
        self.library.require(self.library.raw.edgead_describe(self.handle, text, 1000, byref(needed)))
        assert needed.value == len(text.value) + 1
        return text.value.decode()

    def prepare(self, frame: FrameStruct) -> NDArray[np.uint8]:
        """The network's picture."""
        shape = self.shape()
        pixels = np.full((shape.height, shape.width, 3), 7, np.uint8)
        raw = self.library.raw
        self.library.require(raw.edgead_prepare(self.handle, byref(frame), pixels.ctypes.data, pixels.nbytes))
        return pixels

    def check(self) -> Report:
        """Replay the references."""
        report = Report(ctypes.sizeof(Report))
        self.library.require(self.library.raw.edgead_check(self.handle, byref(report)))
        return report

    def inspect(self, frame: FrameStruct) -> CResult:
        """Judge a frame."""
        raw, handle = self.library.raw, c_uint64()
        self.library.require(raw.edgead_inspect(self.handle, byref(frame), byref(handle)))
        try:
            return self._read(handle.value)
        finally:
            self.library.require(raw.edgead_result_close(handle.value))

    def _read(self, result: int) -> CResult:
        raw = self.library.raw
        decision, score, threshold = c_int32(), c_double(math.inf), c_double(math.inf)
        for name, value in (("decision", decision), ("score", score), ("threshold", threshold)):
            self.library.require(getattr(raw, f"edgead_result_{name}")(result, byref(value)))
        texts = []
        for name in ("category", "reason"):
            text = c_char_p()
            status = getattr(raw, f"edgead_result_{name}")(result, byref(text))
            assert self.library.name(status) in ("SUCCESS", "NO_VALUE")
            texts.append(None if status else (text.value or b"").decode())
        cells, height, width = POINTER(c_float)(), c_int32(), c_int32()
        grid = None
        if not raw.edgead_result_map(result, byref(cells), byref(height), byref(width)):
            grid = np.ctypeslib.as_array(cells, (height.value, width.value)).copy()
        return CResult(DECISIONS[decision.value], score.value, threshold.value, texts[0], texts[1], grid)


def frame_of(image: NDArray[np.uint8], layout: str = "rgb", **changes: Any) -> FrameStruct:
    """A frame of an array, whatever the step between its rows is; changes: fields of the struct.

    The array must live as long as the frame is used.
    """
    height, width = image.shape[:2]
    assert width == 1 or image.strides[1:] == ((3, 1) if image.ndim == 3 else (1,))
    fields = {"layout": LAYOUTS[layout], "data": image.ctypes.data, "width": width, "height": height}
    fields |= {"stride": image.strides[0], **changes}
    return FrameStruct(struct_size=ctypes.sizeof(FrameStruct), **fields)


def nv12_frame(luma: NDArray[np.uint8], chroma: NDArray[np.uint8], standard: str) -> FrameStruct:
    """A frame of NV12, as `edgead.runtime.imaging.nv12.nv12_to_rgb` takes it."""
    fields = {"chroma": chroma.ctypes.data, "chroma_stride": chroma.strides[0], "colors": int(standard == "bt709")}
    return frame_of(luma, "nv12", **fields)


def wheel_library(backend: str = "onnxruntime") -> Path:
    """The shared library of a backend's installed wheel, found without importing it."""
    folder, name = {"openvino": ("libs", "libopenvino_c.so*")}.get(backend, ("capi", "libonnxruntime.so.*"))
    package = find_spec("openvino" if backend == "openvino" else "onnxruntime")
    assert package is not None
    assert package.origin is not None
    (found,) = (Path(package.origin).parent / folder).glob(name)
    return found


def pointer(values: NDArray[Any]) -> Any:
    """The address of an array's first byte."""
    return values.ctypes.data_as(POINTER(c_uint8))
