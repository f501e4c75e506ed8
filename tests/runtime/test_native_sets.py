"""Every instruction set of the native search against float64, on this processor, under sanitizers and in emulators."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.runtime.native_cases import (
    AARCH64,
    GaussiansOutside,
    adversarial,
    compile_probe,
    nearest,
    search_outside,
    sets_of,
)
from tests.runtime.test_mahalanobis import distances, make


class Processor(NamedTuple):
    """One that QEMU imitates, and the instruction sets that it must be found to have, plain C aside."""

    name: str
    emulator: str
    architecture: str | None
    sets: list[str]


PROCESSORS = [
    Processor("Nehalem", "qemu-x86_64", None, []),
    Processor("Haswell", "qemu-x86_64", None, ["AVX2"]),
    Processor("cortex-a53", "qemu-aarch64", AARCH64, ["NEON"]),
    Processor("cortex-a76", "qemu-aarch64", AARCH64, ["NEON dot product", "NEON"]),
    Processor("max", "qemu-aarch64", AARCH64, ["NEON i8mm", "NEON dot product", "NEON"]),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path | None]:
    """The program for each architecture, without any library: an emulator has none of the other's."""
    folder = tmp_path_factory.mktemp("programs")
    return {
        architecture: compile_probe(folder / f"probe-{architecture}", "-O3", "-static", architecture=architecture)
        for architecture in (None, AARCH64)
    }


def emulated(processor: Processor, programs: dict[str | None, Path | None]) -> list[str]:
    emulator, program = shutil.which(processor.emulator), programs[processor.architecture]
    if emulator is None:
        pytest.skip(f"no {processor.emulator}: apt-get install qemu-user")
    if program is None:
        pytest.skip(
            "no compiler for it: " + ("pip install ziglang" if processor.architecture else "apt-get install gcc")
        )
    if processor.architecture is None and program.read_bytes()[18] != 0x3E:  # ELF's number for x86-64
        pytest.skip("gcc makes no programs for x86-64 here")
    return [emulator, "-cpu", processor.name, str(program)]


def check(command: list[str], names: list[str], scale: int, scratch: Path) -> None:
    sets = {one.name: one for one in sets_of(command)}
    for name in names:
        for what, queries, bank, coarse in adversarial(scale):
            found = search_outside(command, sets[name], queries, bank, coarse, scratch)
            expected = nearest(queries, bank)
            expected[~(np.abs(queries) < 1e30).all(1)] = np.nan
            np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-5, err_msg=f"{name}, {what}")


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_a_processor_is_known_for_what_it_has(processor: Processor, programs: dict[str | None, Path | None]) -> None:
    found = [one.name for one in sets_of(emulated(processor, programs)) if one.supported]
    assert found == [*processor.sets, "plain C"]


@pytest.mark.parametrize(
    ("processor", "name"),
    [(PROCESSORS[0], "plain C"), (PROCESSORS[1], "AVX2"), *((PROCESSORS[4], name) for name in PROCESSORS[4].sets)],
    ids=lambda one: one if isinstance(one, str) else one.name,
)
def test_an_emulated_processor_searches_exactly(
    processor: Processor, name: str, programs: dict[str | None, Path | None], tmp_path: Path
) -> None:
    check(emulated(processor, programs), [name], 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: one.name)
def test_every_emulated_processor_searches_large_banks_exactly(
    processor: Processor, programs: dict[str | None, Path | None], tmp_path: Path
) -> None:
    check(emulated(processor, programs), [*processor.sets, "plain C"], 12, tmp_path)


def test_sanitizers_find_nothing_in_any_instruction_set_of_this_processor(tmp_path: Path) -> None:
    watched = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g")
    program = compile_probe(tmp_path / "probe", *watched)
    if program is None:
        pytest.skip("no gcc: apt-get install gcc")
    names = [one.name for one in sets_of([program]) if one.supported]
    check([str(program)], names, 1, tmp_path)
    assert 4 in check_gaussians([str(program)], tmp_path)


def check_gaussians(command: list[str], scratch: Path) -> list[int]:
    """Compare all forms with float64, in each width of vectors; return these."""
    outside = GaussiansOutside(command, scratch)
    for lanes in outside.lanes:
        for size in ((5, 3, 3), (37, 13, 13), (17, 30, 30)):
            case = make(*size, triangular=True)
            for bits, rtol in ((32, 1e-5), (16, 2e-4)):
                found = distances(outside, case, triangular=True, bits=bits, lanes=lanes)
                np.testing.assert_allclose(found, case.expected, rtol=rtol)
        case = make(18, 7, 12, triangular=False, low_rank=True)
        np.testing.assert_allclose(distances(outside, case, lanes=lanes), case.expected, rtol=1e-5)
    return outside.lanes


@pytest.mark.parametrize(
    ("processor", "lanes"),
    [(PROCESSORS[0], [4]), (PROCESSORS[1], [4, 8]), (PROCESSORS[2], [4])],
    ids=lambda one: str(one[0]),
)
def test_an_emulated_processor_computes_gaussians(
    processor: Processor, lanes: list[int], programs: dict[str | None, Path | None], tmp_path: Path
) -> None:
    assert check_gaussians(emulated(processor, programs), tmp_path) == lanes
