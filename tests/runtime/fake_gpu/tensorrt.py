"""Engines that ONNX Runtime executes; see README.md beside the driver library."""

import ctypes
import enum
import os

import numpy as np
import onnxruntime
from cuda.bindings import runtime as cudart

__version__ = os.environ.get("FAKE_TRT_VERSION", "10.3.0")
MOST = 4


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class Severity(enum.IntEnum):
        ERROR = 1


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.IntEnum):
    FLOAT = 0
    UINT8 = 1

    def __str__(self):
        return f"DataType.{self.name}"


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(b"\x08"):
            self.logger.log(ILogger.Severity.ERROR, "Version tag does not match.  Note: Current Version: 239")
            return None
        return Engine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))


class Engine:
    def __init__(self, session):
        self.session = session
        self.tensors = {value.name: value for value in [*session.get_inputs(), *session.get_outputs()]}
        self.names = list(self.tensors)[::-1]  # in no useful order
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        inputs = [value.name for value in self.session.get_inputs()]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name].shape)

    def get_tensor_dtype(self, name):
        return DataType.UINT8 if "uint8" in self.tensors[name].type else DataType.FLOAT

    def get_tensor_profile_shape(self, name, index):
        shape = self.get_tensor_shape(name)[1:]
        return [(1, *shape), (1, *shape), (MOST, *shape)]

    def create_execution_context(self, *settings):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}
        self.batch = None

    def set_input_shape(self, name, shape):
        self.batch = shape[0]
        return shape[0] <= MOST

    def get_tensor_shape(self, name):
        return tuple(self.batch if size < 0 else size for size in self.engine.get_tensor_shape(name))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address in cudart.device

    def execute_async_v3(self, stream):
        if set(self.addresses) != set(self.engine.names):
            return False
        cudart.streams[stream].do(self._execute)
        return True

    def _view(self, name):
        kind = np.uint8 if self.engine.get_tensor_dtype(name) == DataType.UINT8 else np.float32
        shape = self.get_tensor_shape(name)
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        block = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(block, np.uint8).view(kind).reshape(shape)

    def _execute(self):
        inputs = {value.name: self._view(value.name) for value in self.engine.session.get_inputs()}
        outputs = [value.name for value in self.engine.session.get_outputs()]
        for name, found in zip(outputs, self.engine.session.run(outputs, inputs), strict=True):
            self._view(name)[...] = found
