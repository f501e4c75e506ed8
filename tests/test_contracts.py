"""The import contract of pyproject.toml: this tree keeps it, and it finds what it is there for."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp

from tests.file_index import INDEX, first_sentence, render, source_files

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

MOST_LINES, MOST_PARAMETERS = 60, 6
REASONS = ("# More than six parameters: ", "# Over 60 lines: ")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)


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


def test_no_import_circle_is_left() -> None:
    # Names that a package loads on first use are no imports of its own.
    lazy = {"edgead", "edgead.runtime"}
    graph = grimp.build_graph("edgead", cache_dir=None)
    arrows = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules - lazy}
    left = dict(arrows)
    # What imports nothing that is left is in no circle; taken away again and again, only circles stay.
    while loose := [name for name, taken in left.items() if not taken & left.keys()]:
        for name in loose:
            del left[name]
    assert left == {}


def rooms() -> list[Path]:
    return [
        path.parent
        for floor in ("runtime", "export", "edgead")
        for path in sorted((ROOT / floor).rglob("__init__.py"))
        if not {("edgead", "runtime"), ("edgead", "export")} & {path.relative_to(ROOT).parts[:2]}
    ]


def test_rooms_are_small_and_say_what_lives_there() -> None:
    for room in rooms():
        files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
        # A registry grows by one file an entry.
        assert len(files) <= 18 or room.name == "detectors", room
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert text, room
        for file in files:
            assert len(file.read_text().splitlines()) <= 350, file


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether its parameters are the options of the command line."""
    called = [node.func for node in function.decorator_list if isinstance(node, ast.Call)]
    return any(
        getattr(one, "id", "") == "command" or (isinstance(one, ast.Attribute) and one.attr == "callback")
        for one in called
    )


def unwieldy(file: str, text: str) -> list[str]:
    """Return the functions that are long or have many parameters without saying why, or say why and are not."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
        given = node.args
        names = [
            one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if one
        ]
        parameters = 0 if is_command(node) else len([name for name in names if name not in ("self", "cls")])
        first = min(one.lineno for one in (node, *node.decorator_list))
        says = lines[first - 2].strip() if first > 1 else ""
        for reason, value, most in zip(REASONS, (parameters, length), (MOST_PARAMETERS, MOST_LINES), strict=True):
            what = "parameters" if reason == REASONS[0] else "lines"
            if value > most and not says.startswith(REASONS):
                found.append(f"{file}:{node.lineno} {node.name} has {value} {what}, more than {most}")
            elif says.startswith(reason) and value <= most:
                found.append(f"{file}:{node.lineno} {node.name} has {value} {what} and needs no reason")
    return found


def test_functions_are_short_and_take_few_parameters_or_say_why() -> None:
    found = [
        complaint
        for room in rooms()
        for path in sorted(room.glob("*.py"))
        for complaint in unwieldy(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert found == [], "\n".join(found)


def test_long_functions_and_many_parameters_are_found() -> None:
    seven = "a, b, c, d, *, e, f, g"
    long = "\n".join(["    x = 1"] * 61)
    found = unwieldy(
        "m.py",
        f"def many({seven}): pass\n"
        f"class One:\n    def six(self, a, b, c, d, e, f): pass\n"
        f'@command("go")\ndef go({seven}): pass\n'
        f"# More than six parameters: each is one quantity.\n@cached\ndef why({seven}): pass\n"
        f"# More than six parameters: once.\ndef few(a): pass\n"
        f'@command("long")\ndef long():\n    """Sixty-one."""\n{long}\n'
        f"# Over 60 lines: a table.\ndef told():\n{long}\n"
        f'def short():\n    """One.\n\n    More.\n    """\n{long[: long.rindex(chr(10))]}\n',
    )
    assert found == [
        "m.py:1 many has 7 parameters, more than 6",
        "m.py:10 few has 1 parameters and needs no reason",
        "m.py:12 long has 61 lines, more than 60",
    ]


def test_the_plan_names_every_room_and_leads_to_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    links = re.findall(r"\]\(\.\./([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    named = {ROOT / link for link in links}
    inner = {"native", "tuning", "networks"}  # within another room's row
    assert [room for room in rooms() if room not in named and room.parent != ROOT and room.name not in inner] == []


def test_the_index_of_files_is_what_the_files_say() -> None:
    listed = source_files()
    assert len(listed) > 300
    silent = [path for path in listed if not first_sentence(path)]
    assert silent == []
    assert INDEX.read_text(encoding="utf-8") == render(), "run: python -m tests.file_index"
