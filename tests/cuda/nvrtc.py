"""The compiler that JetPack 6 has, CUDA 12.6, from PyPI and without a GPU: kernels to PTX and machine code of sm_87."""

from __future__ import annotations

import ctypes
import re

from tests.cuda import toolchain, wheels


class Nvrtc126:
    """NVRTC 12.6 with the headers of CUDA 12.6, both from PyPI; skips where they cannot be had."""

    def __init__(self) -> None:
        folder, self._include = wheels.nvrtc_12()
        for builtins in sorted(folder.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(folder / "libnvrtc.so.12"))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        assert (major.value, minor.value) == (12, 6)

    def compile(self, target: str) -> tuple[bytes, bytes]:
        """Compile all kernels for ``sm_87`` or ``compute_87``: machine code (empty for the latter) and PTX."""
        header = (toolchain.CUDA_TESTS / "kernels.h").read_text()
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), header.encode(), b"kernels.h", 0, None, None, program=None)
        for name in re.findall(r"KERNEL\((.*?)\) ?\\?$", header, re.MULTILINE):
            self._call("AddNameExpression", program, f"edgead::{name}".encode(), program=program)
        options = [f"--gpu-architecture={target}", "-std=c++17", "-default-device", "-lineinfo"]
        options += [f"-I{self._include}", f"-I{toolchain.KERNELS}"]
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        self._call("CompileProgram", program, len(options), texts, program=program)
        machine_code = self._get("CUBIN", program) if target.startswith("sm") else b""
        return machine_code, self._get("PTX", program).rstrip(b"\\0")

    def _get(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object, program: ctypes.c_void_p | None) -> None:
        status = getattr(self._library, f"nvrtc{name}")(*arguments)
        if status != 0:
            log = self._get("ProgramLog", program) if program else b""
            raise RuntimeError(f"nvrtc{name}: {status}\\n{log.decode(errors='replace')}")
