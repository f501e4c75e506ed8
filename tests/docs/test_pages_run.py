"""The commands and snippets of Start and Tutorials run, and print what the pages say.

By default small: few real images, 64 pixels, in this process. ``-m slow`` runs every page as it stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.docs.blocks import DOCS, MarkError, read_blocks, shows
from tests.docs.pages import PageRun, clean_environment, copy_checkout, describe, few_images
from tests.test_light_install import UNREACHABLE

FIRST = "tutorials/first-model.md"
OTHERS = ("tutorials/camera-to-plc.md", "tutorials/signoff.md", "tutorials/teach.md")
ANOMALIB = "tutorials/anomalib.md"
PC = "start/pc.md"
PAGES = sorted(
    path.relative_to(DOCS).as_posix() for room in ("start", "tutorials") for path in (DOCS / room).glob("*.md")
)


@pytest.fixture(scope="module")
def solar(made_images: Path) -> Callable[[Path], None]:
    """Makes few of the images that `examples/demo.py --images parts` makes: real cells, in the same folders."""

    def make(folder: Path) -> None:
        counts = {"train/good": 16, "test/good": 4, "test/defect": 4}
        category = folder / "parts" / "solar_cell"
        few_images(made_images / "broken", category, counts)
        (category / "test" / "defect").rename(category / "test" / "defective")

    return make


@pytest.fixture(scope="module")
def first(solar: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the first tutorial after it was run small; copy it."""
    folder = tmp_path_factory.mktemp("first")
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # small tensors: a second thread costs more in waiting than it computes
    PageRun(FIRST, folder, small=True, images=solar).run()
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_whether_it_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = read_blocks(DOCS / page)
    with capsys.disabled():
        for one in describe(blocks):
            print(f"\n  not run: {one['at']}: {one['reason']}", end="")
    assert all(len(block.detail) > 10 for block in blocks if block.kind == "not run")


def test_every_page_with_blocks_that_run_is_run() -> None:
    running = {page for page in PAGES if any(block.kind != "not run" for block in read_blocks(DOCS / page))}
    assert running == {FIRST, *OTHERS, ANOMALIB, PC}


def test_the_first_tutorial_runs_small(first: Path) -> None:
    assert (first / "solar.edgead").is_file()
    assert (first / "again.edgead").is_file()
    assert len((first / "results.jsonl").read_text().splitlines()) == 8


def test_the_way_to_the_plc_runs_small(first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "work")
    PageRun(OTHERS[0], tmp_path / "work", small=True).run()
    assert len(list((tmp_path / "work" / "parts" / "belt" / "train" / "good").iterdir())) == 5


@pytest.mark.slow
def test_every_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    (tmp_path / "work" / "examples").mkdir(parents=True)
    shutil.copy(DOCS.parent / "examples" / "demo.py", tmp_path / "work" / "examples")
    for page in (FIRST, *OTHERS):
        PageRun(page, tmp_path / "work", small=False).run()


@pytest.mark.slow
def test_a_model_moves_from_anomalib(made_images: Path, tmp_path: Path) -> None:
    """The checkpoint is laid out as anomalib 2.7 does; `test_importing_real.py` compares that with anomalib itself."""
    import torch

    from edgead.runtime.imaging.decode import find_images, read_image
    from edgead.runtime.imaging.preprocess import resize
    from tests.edgead.anomalib_like import Setup, checkpoint, fitted, save

    def pictures(folder: Path) -> torch.Tensor:
        return torch.from_numpy(np.stack([resize(read_image(file), *setup.size) for file in find_images([folder])]))

    setup, parts = Setup("patchcore"), tmp_path / "work" / "parts" / "plate"
    few_images(made_images / "plate", parts, {"train/good": 16, "test/good": 8, "test/defect": 8})
    model = fitted(setup, pictures(parts / "train"), pictures(parts / "test"))
    save(checkpoint(model), tmp_path / "work" / "model.ckpt")
    PageRun(ANOMALIB, tmp_path / "work", small=False).run()


@pytest.mark.slow
def test_a_station_is_installed_as_the_page_says(tmp_path: Path) -> None:
    page = PageRun(PC, copy_checkout(tmp_path / "work"), small=False, environment=clean_environment())
    try:
        page.run()
    except AssertionError as error:
        if any(text in str(error) for text in UNREACHABLE):
            pytest.skip("no package index can be reached")
        raise


# The mechanism itself


PAGE = """# A page

<!-- run -->
```bash
echo "scored 3.5 on 12 images"
```

```text
scored 4.25 … images
```

<!-- not run: there is no PLC here -->
```bash
exit 1
```
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_marks_are_read(tmp_path: Path) -> None:
    first, second = read_blocks(write(tmp_path, PAGE))
    assert (first.kind, first.line, first.prints) == ("run", 4, "scored 4.25 … images\n")
    assert (second.kind, second.detail) == ("not run", "there is no PLC here")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- run -->\n", "", "page.md:3: no mark above the block"),
        ("<!-- run -->", "<!-- runs -->", "page.md:4: no mark above the block"),
        (": there is no PLC here", "", "'not run' needs text"),
        ("<!-- run -->", "<!-- run: slowly -->", "'run' takes no text"),
        ("```bash\necho", "```\necho", "a mark above a block whose language"),
    ],
)
def test_a_block_without_a_good_mark_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MarkError, match=message):
        read_blocks(write(tmp_path, PAGE.replace(old, new)))


@pytest.mark.parametrize("change", [("scored 4.25", "judged 4.25"), ("echo", "false; echo"), ("… images", "… parts")])
def test_a_page_that_is_not_true_fails(change: tuple[str, str], tmp_path: Path) -> None:
    page = write(tmp_path, PAGE.replace(*change))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        PageRun(str(page), tmp_path, small=True).run()


def test_a_true_page_passes(tmp_path: Path) -> None:
    found = PageRun(str(write(tmp_path, PAGE)), tmp_path, small=True).run()
    assert [block.line for block in found.ran] == [4]


def test_output_is_compared_without_numbers_and_frames() -> None:
    printed = "┃ image AUROC ┃\n│ 0.9219 │\n│ PASS: a.edgead │\nworst 1.5e-05"
    assert shows(printed, "image AUROC\n0.5\nPASS: a.edgead\nworst 3") is None
    assert shows(printed, "PASS: a.edgead\nimage AUROC") == "image AUROC"
    assert shows(printed, "FAIL: …") == "FAIL: …"
