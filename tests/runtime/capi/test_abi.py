"""What a program that is compiled against the header counts on."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from edgead.runtime.version import __version__
from tests.runtime.capi import unicode_tables
from tests.runtime.capi.building import ROOT, SOURCES, need, run
from tests.runtime.capi.wrapper import FrameStruct, Library, Options, Report, Shape

HEADER = (SOURCES / "include" / "edgead.h").read_text()
DECLARED = set(re.findall(r"^EDGEAD_API [a-z0-9_ *]*?\b\*?(edgead_\w+)\(", HEADER, re.MULTILINE))
# The first version's functions and codes: programs count on them, so none of them ever goes or changes its number.
FUNCTIONS = {
    *("abi_version", "check", "close", "describe", "input_shape", "inspect", "last_error", "open", "prepare"),
    *("result_category", "result_close", "result_decision", "result_map", "result_reason", "result_score"),
    *("result_threshold", "result_timings", "status_name", "version"),
}
CODES = {
    **dict(enumerate(["NULL_POINTER", "WRONG_STRUCT_SIZE", "CLOSED", "BUSY", "BUFFER_TOO_SMALL"], 1)),
    **dict(enumerate(["OUT_OF_MEMORY", "INTERNAL", "NO_VALUE"], 6)),
    **dict(enumerate(["MISSING", "UNREADABLE", "NO_ARCHIVE", "DAMAGED", "ALTERED", "SIGNED", "MANIFEST"], 20)),
    **dict(enumerate(["NEWER", "CONTENT", "UNSUPPORTED", "UNTRUSTED"], 27)),
    **dict(enumerate(["UNKNOWN_PRECISION", "UNKNOWN_BACKEND", "WRONG_OPTION", "TRUST_FILE"], 40)),
    **dict(enumerate(["BACKEND_UNAVAILABLE", "BACKEND_FAILED", "CRYPTO_UNAVAILABLE"], 60)),
    **dict(enumerate(["FRAME_LAYOUT", "FRAME_STRIDE", "FRAME_SIZE"], 80)),
    100: "CHECK_FAILED",
}


def test_the_exported_symbols_are_those_of_the_header(installed: Path) -> None:
    need("nm")
    listed = run(["nm", "-D", "--defined-only", installed / "lib" / "libedgead.so"]).stdout
    exported = {line.split()[2].partition("@")[0] for line in listed.splitlines() if line.split()[1] in "TDBRV"}
    assert exported == DECLARED
    assert {f"edgead_{name}" for name in FUNCTIONS} <= exported


def test_it_needs_nothing_but_the_c_library_and_is_small(installed: Path) -> None:
    need("readelf")
    file = installed / "lib" / "libedgead.so"
    needed = re.findall(r"NEEDED.*\[(.*?)\]", run(["readelf", "-d", file]).stdout)
    assert {one for one in needed if not one.startswith("ld-linux")} <= {
        "libc.so.6",
        "libm.so.6",
        "libpthread.so.0",
        "libdl.so.2",
    }
    assert "libedgead.so.1" in run(["readelf", "-d", file]).stdout
    assert file.stat().st_size < 2 << 20


@pytest.mark.parametrize(
    ("compiler", "standard"),
    [("gcc", "c99"), ("gcc", "c11"), ("g++", "c++11"), ("g++", "c++20"), ("clang", "c99"), ("clang++", "c++11")],
)
def test_the_header_compiles_without_a_warning(compiler: str, standard: str, tmp_path: Path) -> None:
    need(compiler)
    source = tmp_path / ("x.cpp" if "++" in compiler else "x.c")
    sizes = {
        "edgead_options": Options,
        "edgead_frame": FrameStruct,
        "edgead_shape": Shape,
        "edgead_check_report": Report,
    }
    checks = [
        f"typedef char {name}_size[sizeof({name}) == {ctypes.sizeof(own)} ? 1 : -1];" for name, own in sizes.items()
    ]
    source.write_text('#include "edgead.h"\n' + "\n".join(checks) + "\nint main(void) { return 0; }\n")
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={standard}"]
    run([compiler, *flags, f"-I{SOURCES / 'include'}", "-c", source, "-o", tmp_path / "x.o"])
    source.write_text('#include "edgead.h"\ntypedef char wrong[sizeof(edgead_frame) == 1 ? 1 : -1];\n')
    command = [compiler, *flags, f"-I{SOURCES / 'include'}", "-c", str(source), "-o", str(tmp_path / "y.o")]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode


def test_codes_and_versions_stay_what_they_are(capi: Library) -> None:
    assert capi.raw.edgead_abi_version() == 1
    assert capi.raw.edgead_version().decode() == __version__
    assert capi.name(0) == "SUCCESS"
    for code, name in CODES.items():
        assert capi.name(code).removeprefix("BUNDLE_") == name
    assert {code for code in range(-5, 300) if capi.name(code) != "unknown status"} == {0, *CODES}
    listed = HEADER[HEADER.index("typedef enum edgead_status") : HEADER.index("} edgead_status")]
    assert {int(code) for code in re.findall(r"^    EDGEAD_\w+ = (\d+)", listed, re.MULTILINE)} == {0, *CODES}


def test_each_declared_function_is_described() -> None:
    assert {f"edgead_{name}" for name in FUNCTIONS} <= DECLARED
    for name in DECLARED:
        # A comment ends right before the declaration.
        assert re.search(rf"\*/\nEDGEAD_API [^;]*\b{name}\(", HEADER), name


def test_what_is_copied_from_python_is_what_python_has() -> None:
    probe = re.search(r"PROBE\[\] = \{([^}]*)\}", (SOURCES / "src" / "saturation_probe.h").read_text())
    assert probe is not None
    data = bytes(int(number) for number in probe[1].split(",") if number.strip())
    assert data == (ROOT / "runtime" / "backends" / "saturation_probe.onnx").read_bytes()


def test_the_tables_of_letters_are_those_of_unicode() -> None:
    import unicodedata

    if unicodedata.unidata_version != unicode_tables.VERSION:
        pytest.skip(f"tables of Unicode {unicode_tables.VERSION}, this Python has {unicodedata.unidata_version}")
    for name, content in unicode_tables.render().items():
        assert (SOURCES / "src" / name).read_text() == content


def test_its_files_are_read_in_one_sitting() -> None:
    for file in SOURCES.rglob("*.[ch]pp"):
        assert len(file.read_text().splitlines()) <= 350, file
