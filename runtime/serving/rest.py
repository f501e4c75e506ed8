"""The protocol over HTTP: JSON, and tensors in binary behind it as NVIDIA's extension has them."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgead.runtime.errors import DataError
from edgead.runtime.http_server import Handler
from edgead.runtime.serving.model import ENCODED, LARGEST, RequestError, ServedModel

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2 as messages

_HEADER = "Inference-Header-Content-Length"
_STATUS = {
    "invalid": HTTPStatus.BAD_REQUEST,
    "unknown": HTTPStatus.NOT_FOUND,
    "not ready": HTTPStatus.SERVICE_UNAVAILABLE,
}
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?/?")
# Bodies are held in memory: not more of them at once than the machine judges in parallel anyway.
_BODIES = threading.BoundedSemaphore(4)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _TensorParameters(_Strict):
    binary_data_size: int | None = Field(default=None, ge=0)
    binary_data: bool | None = None


class _Input(_Strict):
    name: str
    datatype: str
    shape: list[int]
    parameters: _TensorParameters = _TensorParameters()
    data: list[Any] | None = None


class _Output(_Strict):
    name: str
    parameters: _TensorParameters = _TensorParameters()


class _Parameters(_Strict):
    binary_data_output: bool = False


class _Request(_Strict):
    id: str = ""
    parameters: _Parameters = _Parameters()
    inputs: list[_Input]
    outputs: list[_Output] = []


def rest_handler(model: ServedModel, token: str | None) -> type[Handler]:
    """Return the handler of HTTP requests; with a token all but the questions for life and readiness need it."""
    return type("RestHandler", (_RestHandler,), {"model": model, "token": token})


class _RestHandler(Handler):
    model: ServedModel
    token: str | None

    def get(self, path: str, query: str) -> None:  # noqa: ARG002
        match = _MODEL.fullmatch(path)
        try:
            if path == "/v2/health/live":
                self._say({"live": True})
            elif path == "/v2/health/ready":
                self._say_ready()
            elif match is not None and match[3] == "ready":
                self.model.require(unquote(match[1]), unquote(match[2] or ""))
                self._say_ready()
            elif not self._allowed():
                return
            elif path.rstrip("/") == "/v2":
                self._say(self.model.server_metadata())
            elif match is not None and match[3] is None:
                self.model.require(unquote(match[1]), unquote(match[2] or ""))
                self._say(self.model.metadata())
            else:
                self._fail(HTTPStatus.NOT_FOUND, "there is nothing here; see /v2")
        except RequestError as error:
            self._fail(_STATUS[error.kind], str(error))

    def post(self, path: str, query: str) -> None:  # noqa: ARG002
        if not self._allowed():
            return
        match = _MODEL.fullmatch(path)
        if match is None or match[3] != "infer":
            self._fail(HTTPStatus.NOT_FOUND, "post to /v2/models/NAME/infer")
            return
        if self.headers.get("Origin") is not None:
            self._fail(HTTPStatus.FORBIDDEN, "requests are taken from programs, not from web pages")
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Encoding") or not re.fullmatch(r"[0-9]{1,12}", length) or int(length) > LARGEST:
            self._fail(HTTPStatus.BAD_REQUEST, f"send at most {LARGEST} bytes, with their length and uncompressed")
            return
        with _BODIES:
            try:
                request, asked = self._request(self.rfile.read(int(length)))
                request.model_name, request.model_version = unquote(match[1]), unquote(match[2] or "")
                response = self.model.infer(request)
            except RequestError as error:
                self._fail(_STATUS[error.kind], str(error))
                return
            except DataError as error:
                self._fail(HTTPStatus.BAD_REQUEST, str(error))
                return
            self._answer(response, asked)

    def _request(self, body: bytes) -> tuple[messages.ModelInferRequest, _Request]:
        from tritonclient.grpc import service_pb2 as messages

        size = self.headers.get(_HEADER, str(len(body)))
        if not re.fullmatch(r"[0-9]{1,12}", size) or int(size) > len(body):
            raise RequestError("invalid", f"{_HEADER} is the length of the JSON, within the body's")
        try:
            asked = _Request.model_validate_json(body[: int(size)])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError("invalid", f"this is no request of the protocol: {where}: {first['msg']}") from error
        request = messages.ModelInferRequest(id=asked.id)
        place = int(size)
        for tensor in asked.inputs:
            try:
                request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            except ValueError as error:  # beyond 64 bits
                raise RequestError("invalid", f"shape {str(tensor.shape)[:60]} is no shape") from error
            binary = tensor.parameters.binary_data_size
            if (binary is None) is (tensor.data is None):
                raise RequestError("invalid", f"input '{tensor.name[:60]}' has either data or binary_data_size")
            if binary is None:
                request.raw_input_contents.append(_raw(tensor))
            else:
                request.raw_input_contents.append(body[place : place + binary])
                place += binary
        if place != len(body):
            raise RequestError(
                "invalid", f"{len(body) - int(size)} bytes follow the JSON, {place - int(size)} are named"
            )
        request.outputs.extend(
            messages.ModelInferRequest.InferRequestedOutputTensor(name=o.name) for o in asked.outputs
        )
        return request, asked

    def _answer(self, response: messages.ModelInferResponse, asked: _Request) -> None:
        chosen = {output.name: output.parameters.binary_data for output in asked.outputs}
        outputs, behind = [], []
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            binary = chosen.get(tensor.name)
            if asked.parameters.binary_data_output if binary is None else binary:
                said["parameters"] = {"binary_data_size": len(raw)}
                behind.append(raw)
            else:
                said["data"] = _listed(tensor.datatype, raw)
            outputs.append(said)
        about = {"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs}
        text = json.dumps({**about, **({"id": response.id} if response.id else {})}, allow_nan=False).encode()
        if not behind:
            self.answer(text, "application/json")
            return
        headers = ((_HEADER, str(len(text))),)
        self.answer(text + b"".join(behind), "application/octet-stream", headers=headers)

    def _allowed(self) -> bool:
        if self.token is None or self.bearer_is(self.token):
            return True
        self.close_connection = True
        self._fail(HTTPStatus.UNAUTHORIZED, "send Authorization: Bearer TOKEN")
        return False

    def _say_ready(self) -> None:
        ready = self.model.ready
        self._say({"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _say(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self.answer(json.dumps(value).encode(), "application/json", status=status)

    def _fail(self, status: HTTPStatus, text: str) -> None:
        self._say({"error": text}, status)


def _raw(tensor: _Input) -> bytes:
    """Return the raw form of a tensor that came as JSON numbers, nested or flat, or as texts in base64."""
    assert tensor.data is not None
    kind: Literal["text", "number"] = "text" if tensor.name == ENCODED else "number"
    try:
        if kind == "text":
            files = [base64.b64decode(item, validate=True) for item in tensor.data]
            return b"".join(len(file).to_bytes(4, "little") + file for file in files)
        values = np.array(tensor.data)
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise RequestError("invalid", f"the data of input '{tensor.name[:60]}' cannot be read as {kind}s") from error
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 255):
        raise RequestError("invalid", f"input '{tensor.name[:60]}' holds whole numbers from 0 to 255")
    if values.ndim != 1 and list(values.shape) != tensor.shape:
        raise RequestError("invalid", f"the data of input '{tensor.name[:60]}' have not the shape {tensor.shape}")
    return values.astype(np.uint8).tobytes()


def _listed(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "BYTES":
        from tritonclient.utils import deserialize_bytes_tensor

        return [word.decode() for word in deserialize_bytes_tensor(raw)]
    values = np.frombuffer(raw, {"FP64": "<f8", "FP32": "<f4"}[datatype]).tolist()
    return [value if math.isfinite(value) else None for value in values]
