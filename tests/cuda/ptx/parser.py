"""PTX text to kernels: instructions with their operands, and the line of the source each came from.

Understands what nvcc and NVRTC emit for kernels without function calls, local memory and textures; anything else
raises `PtxError` when it is met.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class PtxError(RuntimeError):
    """Text that is not understood, or a kernel that does what it must not."""


@dataclass(frozen=True)
class Instruction:
    """One statement.

    Attributes:
        guard: predicate register without which a thread skips it, or None; negated: skips it with it.
        opcode: parts between the dots, such as ``("ld", "global", "nc", "f32")``.
        operands: as written; ``{...}`` and ``[...]`` are one operand.
        place: where it comes from, for messages.
    """

    guard: str | None
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    place: str


@dataclass
class Kernel:
    """One ``.entry``: parameters in order as ``(name, type)``, code, and where labels point."""

    name: str
    parameters: list[tuple[str, str]]
    registers: dict[str, str] = field(default_factory=dict)  # name, or prefix such as %rd -> type such as b64
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)[^{]*?\n\{\n(.*?)\n\}", re.DOTALL)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(%?\w+?)(?:<\d+>)?")
_LABEL = re.compile(r"(\$[\w$]+):\s*")
_STATEMENT = re.compile(r"(?:@(!?)(%?\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


def parse(text: str) -> dict[str, Kernel]:
    """Find all kernels of a module, by mangled name."""
    files = {number: name.rsplit("/", 1)[-1] for number, name in _FILE.findall(text)}
    text = re.sub(r"//[^\n]*", "", text)
    kernels = {}
    for match in _ENTRY.finditer(text):
        parameters = [_parameter(line) for line in match[2].split(",") if line.strip()]
        kernel = Kernel(match[1], parameters)
        first_line = text.count("\n", 0, match.start(3)) + 1
        _parse_body(kernel, match[3], first_line, files)
        kernels[kernel.name] = kernel
    return kernels


def _parameter(text: str) -> tuple[str, str]:
    words = text.split()
    return words[-1], words[1].lstrip(".")


def _parse_body(kernel: Kernel, body: str, first_line: int, files: dict[str, str]) -> None:
    pending = ""
    source = ""
    for offset, line in enumerate(body.split("\n")):
        stripped = line.strip()
        if stripped.startswith(".loc"):
            words = stripped.split()
            source = f"{files.get(words[1], '?')}:{words[2]}, "
            continue
        pending += line + "\n"
        while True:
            pending = _strip_labels(kernel, pending)
            statement, semicolon, rest = pending.partition(";")
            if not semicolon:
                break
            pending = rest
            _parse_statement(kernel, statement.strip(), f"{source}PTX line {first_line + offset}")


def _strip_labels(kernel: Kernel, text: str) -> str:
    """Take labels and the braces of scopes off the front: no instruction begins with either."""
    while True:
        text = text.lstrip(" \t\n{}")
        label = _LABEL.match(text)
        if label is None:
            return text
        kernel.labels[label[1]] = len(kernel.code)
        text = text[label.end() :]


def _parse_statement(kernel: Kernel, statement: str, place: str) -> None:
    register = _REGISTER.fullmatch(statement)
    if register is not None:
        kernel.registers[register[2]] = register[1]
        return
    if statement.startswith(".pragma"):
        return
    match = _STATEMENT.fullmatch(statement)
    if statement.startswith(".") or match is None:
        raise PtxError(f"not understood: {statement!r} ({place})")
    opcode = tuple(part.removeprefix(":") for part in match[3].split("."))
    operands = tuple(_OPERAND.findall(match[4]))
    kernel.code.append(Instruction(match[2], match[1] == "!", opcode, operands, place))
