"""From a GPU's memory to the host's. Written against cuda-bindings; not run on a GPU yet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.tensorrt_library import load_cuda, require_success


def copy_to_host(address: int, shape: tuple[int, ...], kind: np.dtype, stream: int | None) -> NDArray[np.generic]:
    """Return a copy of a C-contiguous array in GPU memory, as ``__cuda_array_interface__`` describes it.

    Args:
        address: of its first element.
        shape, kind: as numpy has them.
        stream: on which it is being written; None: it is ready.

    Raises:
        BackendUnavailable: cuda-bindings is missing.
        BackendError: the copy failed.
    """
    cuda = load_cuda()
    if stream is not None:
        require_success(cuda.cudaStreamSynchronize(stream), "wait for a picture")
    host: NDArray[np.generic] = np.empty(shape, kind)
    done = cuda.cudaMemcpy(host.ctypes.data, address, host.nbytes, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
    require_success(done, "copy a picture to the host")
    return host
