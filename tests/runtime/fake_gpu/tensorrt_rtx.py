"""As `tensorrt`, with what only TensorRT-RTX has; see README.md beside the driver library."""

import enum

import tensorrt
from tensorrt import DataType, ILogger, TensorIOMode  # noqa: F401

__version__ = "1.7.1"


class CudaGraphStrategy(enum.IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class RuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED


class Engine(tensorrt.Engine):
    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, settings):
        assert settings.cuda_graph_strategy == CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return tensorrt.Context(self)


class Runtime(tensorrt.Runtime):
    def deserialize_cuda_engine(self, plan):
        engine = super().deserialize_cuda_engine(plan)
        return None if engine is None else Engine(engine.session)
