"""Faulty kernels are caught, each by the layer that docs/kernels.md names."""

from __future__ import annotations

import pytest

from tests.cuda import tables
from tests.cuda.mutants import LAYERS, MUTANTS, SILENT, Mutant

# One a layer; the others take minutes.
QUICK = {
    "MMA: halves of factor B swapped",
    "MMA: copies rows that are not there",
    "exhaust: no barrier before the warps' lists are merged",
    "port: fragments of A swapped in the FP16 product",
}


def test_the_quick_ones_cover_all_layers() -> None:
    assert {mutant.layer for mutant in MUTANTS if mutant.name in QUICK} == set(LAYERS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, marks=() if m.name in QUICK else pytest.mark.slow) for m in MUTANTS],
    ids=lambda mutant: mutant.name,
)
def test_faults_are_caught(mutant: Mutant) -> None:
    assert mutant.try_layer(mutant.layer) != SILENT


def test_the_page_lists_every_fault_and_its_layer() -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.read("mutants").splitlines()[2:]]
    assert [line[0] for line in lines] == [mutant.name for mutant in MUTANTS]
    for mutant, line in zip(MUTANTS, lines, strict=True):
        cell = line[1 + LAYERS.index(mutant.layer)]
        assert cell.startswith("**"), f"{mutant.name}: the page puts another layer in bold"
        assert cell != f"**{SILENT}**"
