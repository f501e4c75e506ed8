"""The import contract of pyproject.toml: this tree keeps it, and it finds what it is there for."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Where an import is planted, the line, and how import-linter must name the offence.
VIOLATIONS = [
    ("runtime/frame.py", "import torch", "edgead.runtime.frame -> torch"),
    ("runtime/sources/video.py", "def late() -> None:\n    import rich", "edgead.runtime.sources.video -> rich"),
    ("export/graph/lint.py", "import edgead.detectors.padim", "edgead.export.graph.lint -> edgead.detectors.padim"),
    ("export/graph/external_weights.py", "import timm", "edgead.export.graph.external_weights -> timm"),
    ("edgead/metrics/metrics.py", "from edgead.cli import main", "edgead.metrics.metrics -> edgead.cli"),
    ("edgead/synthesis/shapes.py", "import edgead.probes.scene", "edgead.synthesis.shapes -> edgead.probes.scene"),
    ("edgead/new_module.py", "", "edgead.new_module"),
]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)


def copy_tree(target: Path) -> Path:
    for name in ("edgead", "export", "runtime"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def test_imports_point_down_only() -> None:
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 broken" in found.stdout


def test_lower_floors_take_nothing_from_the_package_above() -> None:
    # `from edgead import name` is an import of the package itself, which no layer holds, so import-linter passes it.
    reaching_up = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for floor in ("runtime", "export")
        for path in sorted((ROOT / floor).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and node.module == "edgead")
        or (isinstance(node, ast.Import) and any(alias.name == "edgead" for alias in node.names))
    ]
    assert reaching_up == []


def test_planted_violations_are_found_on_every_floor(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    for file, line, _ in VIOLATIONS:
        with (tree / file).open("a") as module:
            module.write(f"\n\n{line}\n")
    found = lint_imports(tree)
    assert found.returncode == 1, found.stdout + found.stderr
    missed = [message for *_, message in VIOLATIONS if message not in found.stdout]
    assert not missed, found.stdout


def test_a_checkout_without_its_symlinks_is_not_taken_for_clean(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    (tree / "edgead" / "runtime").unlink()
    (tree / "edgead" / "runtime").write_text("../runtime")  # what git writes where it may make no links
    found = lint_imports(tree)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "edgead.runtime" in found.stdout + found.stderr
