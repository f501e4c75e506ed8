"""Completion by a shell: the script that it loads, and the names that options take, without importing what has them."""

from __future__ import annotations

import ast
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

import edgead

PRECISIONS = ("fp32", "fp16", "int8-trt", "int8-cpu")

_VARIABLE = "_EDGEAD_COMPLETE"


class Shell(str, Enum):
    """Shells that there is a script for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"


class Root(TyperGroup):
    """The root command, which answers shells, without typer's two options for that.

    They take the shell from the processes above this one, which finds none in a container, and one of them writes into
    the user's start-up files.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters of ``edgead``."""
        return [one for one in super().get_params(ctx) if one.name not in ("install_completion", "show_completion")]


def completion_script(shell: Shell) -> str:
    """Return what a shell loads to complete ``edgead``."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it has no public name

    return get_completion_script(prog_name="edgead", complete_var=_VARIABLE, shell=shell.value)


def complete_detector(incomplete: str) -> list[str]:
    """Return the detectors that a word may become: ``NAME``, ``NAME+NAME``, ``NAME,NAME``, ``LABEL=NAME``."""
    cut = max(incomplete.rfind(character) for character in "+,=") + 1
    return [incomplete[:cut] + name for name in registered("detectors") if name.startswith(incomplete[cut:])]


def complete_backend(incomplete: str) -> list[str]:
    """Return the backends that a word may become."""
    return [name for name in ("auto", *registered("runtime.backends")) if name.startswith(incomplete)]


def complete_precision(incomplete: str) -> list[str]:
    """Return the precisions of a bundle that a word may become."""
    return [name for name in PRECISIONS if name.startswith(incomplete)]


def complete_target(incomplete: str) -> list[str]:
    """Return the targets of ``edgead build`` that a word may become."""
    return [name for name in ("tensorrt", "tensorrt-rtx", "cpu") if name.startswith(incomplete)]


def registered(package: str) -> list[str]:
    """Return the names in the ``REGISTRY`` of ``edgead.PACKAGE``, read from its source: detectors import torch.

    Empty where there is no source; a shell then completes file names.
    """
    source = Path(edgead.__file__).parent.joinpath(*package.split("."), "__init__.py")
    with suppress(OSError, SyntaxError):
        for node in ast.parse(source.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target) != "REGISTRY":
                continue
            keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
            return [str(key.value) for key in keys if isinstance(key, ast.Constant)]
    return []
