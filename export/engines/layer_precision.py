"""Which precision the layers of an engine have, and whether that is the one that was asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgead.runtime.errors import ParityError

# What the engine inspector writes of a tensor, from "Row major linear FP16 format" to a bare "Half".
_FORMATS = (
    ("int8", r"int8"),
    ("fp8", r"fp8|e4m3"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|float16|half"),
    ("fp32", r"fp32|float32|float"),
    ("int32", r"int32"),
    ("int64", r"int64"),
    ("uint8", r"uint8"),
    ("bool", r"bool"),
)
_HEAVY = re.compile(r"conv(?!ert)|matrix_multiply|matmul|gemm")


class Layer(NamedTuple):
    """One layer: its name, its kind in the vendor's words, its precision (``fp32``, ``fp16``, ``int8`` …)."""

    name: str
    kind: str
    precision: str

    @property
    def heavy(self) -> bool:
        """Whether it is a convolution or a matrix product, where the time goes and the precision matters."""
        return _HEAVY.search(self.kind.lower()) is not None


def engine_layers(records: Sequence[Any]) -> list[Layer]:
    """Return the layers of an engine from the inspector's JSON; a name without details is of unknown precision."""
    found = []
    for record in records:
        if not isinstance(record, Mapping):
            found.append(Layer(str(record), "unknown", "unknown"))
            continue
        kind = str(record.get("ParameterType") or record.get("LayerType") or "unknown")
        # The narrowest type that goes in or comes out: an 8-bit convolution may give floats.
        types = [_tensor_type(tensor) for key in ("Outputs", "Inputs") for tensor in record.get(key) or ()]
        ranked = [name for name in ("int8", "fp8", "fp16", "bf16", "fp32") if name in types]
        found.append(Layer(str(record.get("Name", "?")), kind, ranked[0] if ranked else (types or ["unknown"])[0]))
    return found


def count(layers: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """Return ``{kind: {precision: how many}}`` of the heavy layers, and of all others as ``other``."""
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        table.setdefault(layer.kind.lower() if layer.heavy else "other", Counter())[layer.precision] += 1
    return {kind: dict(sorted(counter.items())) for kind, counter in sorted(table.items())}


def require_precision(file: str, precision: str, layers: Sequence[Layer]) -> None:
    """Refuse an engine that was asked for in FP16 or INT8 and computes in FP32.

    Args:
        file: the graph file, for the message.
        precision: of the graph file: ``fp32``, ``fp16``, ``int8-trt`` …
        layers: of the engine, or of the strongly typed network.

    Raises:
        ParityError: no convolution or matrix product (no layer, where the kinds are not known) has the precision.
    """
    wanted = precision.partition("-")[0]
    if wanted not in ("fp16", "int8"):
        return
    judged = [layer for layer in layers if layer.heavy] or list(layers)
    if any(layer.precision == wanted for layer in judged):
        return
    have = ", ".join(f"{number} {name}" for name, number in Counter(layer.precision for layer in judged).items())
    raise ParityError(
        f"{file} was built as {precision}, but none of its layers computes in {wanted} ({have or 'no layers'}); "
        "nothing was kept: export the bundle again"
    )


def _tensor_type(tensor: Any) -> str:
    text = str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))).lower() if isinstance(tensor, Mapping) else ""
    if re.search(r"uint8", text):
        return "uint8"
    return next((name for name, pattern in _FORMATS if re.search(pattern, text)), "unknown")
