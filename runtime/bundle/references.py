"""``references/expected.npz``: what the torch model gave on the reference images."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY
from edgead.runtime.errors import BundleError
from edgead.runtime.frame import Inference

REFERENCES = "references/"
EXPECTED_NAME = "references/expected.npz"

_KEYS = ("names", "score", "map")
_ROUTED_KEYS = ("category", "known")
_MAX_BYTES = 256 << 20


def pack_expected(
    names: Sequence[str],
    score: NDArray[np.float32],
    map: NDArray[np.float32],
    *,
    category: Sequence[str] | None = None,
    known: Sequence[bool] | None = None,
) -> bytes:
    """Return the bytes of ``expected.npz``; the same arrays give the same bytes.

    Args:
        names: ``N`` reference names relative to ``references/``, unique.
        score: ``(N,)`` finite. map: ``(N, gh, gw)`` finite.
        category, known: of a routed model, both: the category of each, and whether it was taken for a part of it.

    Raises:
        BundleError: shapes, names or values that `unpack_expected` would refuse.
    """
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array(list(names), dtype=np.str_),
        "score": np.float32(score),
        "map": np.float32(map),
    }
    if category is not None or known is not None:
        arrays["category"] = np.array(list(category or ()), dtype=np.str_)
        arrays["known"] = np.array(list(known or ()), dtype=np.bool_)
    _check(arrays, "the expected results")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for key in arrays:
            member = io.BytesIO()
            npy.write_array(member, np.ascontiguousarray(arrays[key]), version=(1, 0), allow_pickle=False)
            # A ZipInfo of its own: writestr with a plain name would store the time of day.
            archive.writestr(zipfile.ZipInfo(f"{key}.npy"), member.getvalue())
    return stream.getvalue()


def unpack_expected(data: bytes, label: str) -> dict[str, NDArray[Any]]:
    """Read ``expected.npz`` without pickle and without believing a claimed size.

    Returns:
        ``names (N,)`` str, ``score (N,)`` float32, ``map (N, gh, gw)`` float32; of a routed model also
        ``category (N,)`` str and ``known (N,)`` bool.

    Raises:
        BundleError: not these arrays, or a value that is not finite.
    """
    where = f"{label}: {EXPECTED_NAME}"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = sorted(archive.namelist())
            keys = next((k for k in (_KEYS, _KEYS + _ROUTED_KEYS) if held == sorted(f"{key}.npy" for key in k)), None)
            if keys is None:
                raise BundleError(f"{where} must hold names, score and map; export it again")
            arrays = {key: _read_array(archive, f"{key}.npy") for key in keys}
    except BundleError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types for damaged files
        raise BundleError(f"{where} cannot be read ({' '.join(str(error).split())[:200]}); export it again") from error
    _check(arrays, where)
    return arrays


def expected_inferences(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Inference]:
    """Return reference name -> what the torch model gave on it, as a backend would have."""
    found = {}
    for row, name in enumerate(arrays["names"].tolist()):
        category = reason = None
        if "category" in arrays:
            category = [str(arrays["category"][row])]
            reason = [None if arrays["known"][row] else UNKNOWN_CATEGORY]
        found[name] = Inference(arrays["score"][row : row + 1], arrays["map"][row : row + 1], category, reason)
    return found


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as member:
        data = member.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{name} is larger than {_MAX_BYTES} bytes")
    stream = io.BytesIO(data)
    if npy.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} has an unknown npy version")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    # numpy allocates what the header claims; the bytes that are there must bear it out first.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{name} claims another size than it has")
    stream.seek(0)
    array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def _check(arrays: dict[str, NDArray[Any]], where: str) -> None:
    names, score, grid = (arrays[key] for key in _KEYS)
    right = names.dtype.kind == "U" and score.dtype == grid.dtype == np.float32
    if not right or (names.ndim, score.ndim, grid.ndim) != (1, 1, 3):
        raise BundleError(f"{where} must hold names (N,) str, score (N,) and map (N, gh, gw) float32; export it again")
    if not len(names) == len(score) == len(grid) or len(set(names.tolist())) != len(names) or 0 in grid.shape[1:]:
        raise BundleError(f"{where}: names, score and map do not belong together; export it again")
    if not (np.isfinite(score).all() and np.isfinite(grid).all()):
        raise BundleError(f"{where} holds a value that is not finite; export it again")
    for key, kind in (("category", "U"), ("known", "b")):
        if key in arrays and (arrays[key].dtype.kind != kind or arrays[key].shape != names.shape):
            raise BundleError(f"{where}: {key} does not belong to names; export it again")
