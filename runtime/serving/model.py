"""The one model that is served: requests in the messages of the protocol, judged image by image."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError, EdgeadError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.version import __version__

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2 as messages

PLATFORM = "edgead"
LARGEST = 64 << 20  # bytes of one request
_MOST_IMAGES = 256
IMAGE, ENCODED = "image", "encoded"
# Name, datatype and shape (-1: any, the first is the number of images) of what comes in, one of them, and goes out.
INPUTS = ((IMAGE, "UINT8", (-1, -1, -1, 3)), (ENCODED, "BYTES", (-1,)))
OUTPUTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("decision", "BYTES", (-1,)),
    ("score", "FP64", (-1,)),
    ("threshold", "FP64", (-1,)),
    ("p_value", "FP64", (-1,)),
    ("category", "BYTES", (-1,)),
    ("reason", "BYTES", (-1,)),
    ("bundle", "BYTES", (-1,)),
    ("map", "FP32", (-1, -1, -1)),
)


class RequestError(EdgeadError):
    """A request that cannot be answered; nothing was decided.

    Attributes:
        kind: ``invalid``, ``unknown`` (no such model) or ``not ready``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Inspects(Protocol):
    """What is needed of an `edgead.runtime.Inspector` that was opened from a bundle."""

    bits: int

    @property
    def name(self) -> str: ...

    @property
    def bundle(self) -> tuple[Any, str] | None: ...

    def __call__(self, frame: Frame) -> Result: ...

    def self_test(self) -> list[str]: ...


class ServedModel:
    """Answers requests about one bundle; any thread may call it.

    Args:
        inspector: opened from a bundle; it stays open.
        clock: monotonic clock in ns.

    Attributes:
        ready: the self-test passed; without it nothing is judged.
        judged: number of images by decision.
    """

    def __init__(self, inspector: Inspects, clock: Callable[[], int] = time.monotonic_ns) -> None:
        if inspector.bundle is None:
            raise ConfigError("only an inspector that was opened from a bundle can be served")
        self._inspector, self._clock = inspector, clock
        self.name = inspector.name
        self.ready = False
        self.judged = dict.fromkeys((decision.value for decision in Decision), 0)
        self._lock = threading.Lock()
        self._count = 0

    @property
    def version(self) -> str:
        """The bundle that judges now: the first 12 digits of its SHA-256."""
        bundle = self._inspector.bundle
        return "" if bundle is None else bundle[1][:12]

    def self_test(self) -> list[str]:
        """Replay the references; ready from then on where nothing is wrong, and not ready where something is."""
        self.ready = False
        problems = self._inspector.self_test()
        self.ready = not problems
        return problems

    def require(self, name: str, version: str) -> None:
        """Raise `RequestError` where a request is for another model or version; an empty version is any."""
        if name != self.name:
            raise RequestError("unknown", f"there is no model '{name[:60]}'; this server has '{self.name}'")
        if version not in ("", self.version):
            raise RequestError("unknown", f"model '{name}' has no version '{version[:60]}', only {self.version}")

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "edgead", "version": __version__, "extensions": ["binary_tensor_data"]}

    def metadata(self) -> dict[str, Any]:
        inputs, outputs = (
            [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in tensors]
            for tensors in (INPUTS, OUTPUTS)
        )
        about = {"name": self.name, "versions": [self.version], "platform": PLATFORM}
        return {**about, "inputs": inputs, "outputs": outputs}

    def infer(self, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
        """Judge the images of a request, each by itself as `edgead.runtime.Inspector` does.

        Raises:
            RequestError: nothing was judged.
        """
        from tritonclient.grpc import service_pb2 as messages

        self.require(request.model_name, request.model_version)
        wanted = [output.name for output in request.outputs] or [name for name, *_ in OUTPUTS]
        unknown = [name for name in wanted if name not in {known for known, *_ in OUTPUTS}]
        if unknown or len(set(wanted)) < len(wanted):
            raise RequestError("invalid", f"outputs are some of {', '.join(n for n, *_ in OUTPUTS)}, each once")
        if not self.ready:
            raise RequestError("not ready", "the self-test has not passed; nothing is judged")
        images = self._images(request)
        results = [self._judge(image) for image in images]
        tensors = _outputs(results)
        response = messages.ModelInferResponse(model_name=self.name, model_version=self.version, id=request.id)
        for name, datatype, _ in OUTPUTS:
            if name in wanted:
                values, raw = tensors[name]
                response.outputs.add(name=name, datatype=datatype, shape=values.shape)
                response.raw_output_contents.append(raw)
        return response

    def _judge(self, image: NDArray[np.uint8]) -> Result:
        with self._lock:
            index, self._count = self._count, self._count + 1
        result = self._inspector(Frame(image, index, self._clock(), "serve"))
        with self._lock:
            self.judged[result.decision.value] += 1
        return result

    def _images(self, request: messages.ModelInferRequest) -> list[NDArray[np.uint8]]:
        if len(request.inputs) != 1 or request.inputs[0].name not in (IMAGE, ENCODED):
            raise RequestError("invalid", f"send one input, '{IMAGE}' (UINT8) or '{ENCODED}' (BYTES)")
        given = request.inputs[0]
        datatype = {name: kind for name, kind, _ in INPUTS}[given.name]
        if given.datatype != datatype:
            raise RequestError("invalid", f"input '{given.name}' is {datatype}, not {given.datatype[:20]!r}")
        shape = tuple(given.shape)
        if not shape or min(shape) < 1:
            raise RequestError("invalid", f"input '{given.name}' has the shape {list(shape)}: nothing to judge")
        if given.name == ENCODED:
            return self._decoded(shape, _texts(request))
        if len(shape) not in (3, 4) or shape[-1] != 3:
            said = "[H, W, 3] or [N, H, W, 3]: rows, columns, then red, green, blue"
            raise RequestError("invalid", f"input '{IMAGE}' is {said}; this has the shape {list(shape)}")
        _require_few(1 if len(shape) == 3 else shape[0])
        raw = _bytes(request)
        if math.prod(shape) != len(raw):
            raise RequestError("invalid", f"shape {list(shape)} is {math.prod(shape)} bytes, and {len(raw)} were sent")
        pixels = np.frombuffer(raw, np.uint8).reshape(shape if len(shape) == 4 else (1, *shape))
        return [np.ascontiguousarray(image) for image in pixels]

    def _decoded(self, shape: tuple[int, ...], files: Sequence[bytes]) -> list[NDArray[np.uint8]]:
        if shape not in ((len(files),), (len(files), 1)):
            raise RequestError("invalid", f"input '{ENCODED}' has the shape {list(shape)}, and {len(files)} elements")
        _require_few(len(files))
        try:
            return [decode_image(data, f"image {place}", self._inspector.bits) for place, data in enumerate(files, 1)]
        except DataError as error:
            raise RequestError("invalid", str(error)) from error


def _require_few(count: int) -> None:
    if count > _MOST_IMAGES:
        raise RequestError("invalid", f"at most {_MOST_IMAGES} images a request, not {count}")


def _bytes(request: messages.ModelInferRequest) -> bytes:
    if len(request.raw_input_contents) == 1 and not request.inputs[0].contents.ListFields():
        return bytes(request.raw_input_contents[0])
    if request.raw_input_contents:
        raise RequestError("invalid", "send the input's content once, raw or typed")
    values = request.inputs[0].contents.uint_contents
    try:
        return bytes(values)
    except ValueError as error:
        raise RequestError("invalid", f"input '{IMAGE}' holds values above 255") from error


def _texts(request: messages.ModelInferRequest) -> list[bytes]:
    """Return the elements of a BYTES tensor; raw, each has its length in 4 bytes before it."""
    if not request.raw_input_contents:
        return list(request.inputs[0].contents.bytes_contents)
    raw, files, place = _bytes(request), [], 0
    while place < len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        if end > len(raw) or place + 4 > len(raw):
            raise RequestError("invalid", f"input '{ENCODED}' breaks off; each element has its length before it")
        files.append(raw[place + 4 : end])
        place = end
    return files


def _outputs(results: Sequence[Result]) -> dict[str, tuple[NDArray[Any], bytes]]:
    """Return each output with its raw form; a number that is not there is NaN, a text empty, a map NaN."""
    from tritonclient.utils import serialize_byte_tensor

    texts = {
        "decision": [result.decision.value for result in results],
        "category": [result.category or "" for result in results],
        "reason": [result.reason or "" for result in results],
        "bundle": [result.bundle or "" for result in results],
    }
    numbers = {
        "score": [result.score for result in results],
        "threshold": [result.threshold for result in results],
        "p_value": [math.nan if result.p_value is None else result.p_value for result in results],
    }
    tensors: dict[str, tuple[NDArray[Any], bytes]] = {}
    for name, words in texts.items():
        array = np.array([word.encode() for word in words], np.object_)
        tensors[name] = array, serialize_byte_tensor(array).item()
    for name, values in numbers.items():
        tensors[name] = (array := np.array(values, "<f8")), array.tobytes()
    tensors["map"] = (maps := _maps(results)), maps.tobytes()
    return tensors


def _maps(results: Sequence[Result]) -> NDArray[np.float32]:
    shapes = {result.map.shape for result in results if result.map is not None}
    if len(shapes) > 1:
        raise RequestError("invalid", "the anomaly maps of these images differ in size; send them one by one")
    height, width = next(iter(shapes), (0, 0))
    maps: NDArray[np.float32] = np.full((len(results), height, width), np.nan, "<f4")
    for slot, result in zip(maps, results, strict=True):
        if result.map is not None:
            slot[...] = result.map
    return maps
