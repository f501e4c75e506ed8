"""Host memory in the place of a GPU's; see README.md beside the driver library."""

import ctypes
import enum


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


cudaStreamNonBlocking = 1
OK = cudaError_t.cudaSuccess
device, pinned, streams = {}, {}, {}
launches = 0


def _allocate(kept, size):
    block = (ctypes.c_uint8 * size)(*([0xAB] * size))
    kept[ctypes.addressof(block)] = block
    return OK, ctypes.addressof(block)


def cudaMalloc(size):
    return _allocate(device, size)


def cudaMallocHost(size):
    return _allocate(pinned, size)


def cudaFree(address):
    del device[address]
    return (OK,)


def cudaFreeHost(address):
    del pinned[address]
    return (OK,)


class Stream:
    recorded = None

    def __int__(self):
        return id(self)

    def do(self, deed):
        if self.recorded is None:
            deed()
        else:
            self.recorded.append(deed)


def cudaStreamCreateWithFlags(flags):
    stream = Stream()
    streams[int(stream)] = stream
    return OK, stream


def cudaStreamDestroy(stream):
    del streams[int(stream)]
    return (OK,)


def cudaStreamSynchronize(stream):
    return (OK if stream.recorded is None else cudaError_t.cudaErrorStreamCaptureUnsupported,)


def cudaMemcpyAsync(to, source, size, kind, stream):
    homes = (device, pinned) if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else (pinned, device)
    if to not in homes[0] or source not in homes[1] or len(homes[0][to]) != size:
        return (cudaError_t.cudaErrorInvalidValue,)
    stream.do(lambda: ctypes.memmove(to, source, size))
    return (OK,)


def cudaStreamBeginCapture(stream, mode):
    stream.recorded = []
    return (OK,)


def cudaStreamEndCapture(stream):
    graph, stream.recorded = stream.recorded, None
    return OK, graph


def cudaGraphInstantiate(graph, flags):
    return OK, list(graph)


def cudaGraphLaunch(executable, stream):
    global launches
    launches += 1
    for deed in executable:
        stream.do(deed)
    return (OK,)


def cudaGraphDestroy(graph):
    return (OK,)


def cudaGraphExecDestroy(executable):
    return (OK,)
