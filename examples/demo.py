"""The main job on real images, from normal images to decisions on a stream: what ``make demo`` runs.

Data: PyPI ``elpv-dataset`` 1.0.0, images of solar cells (Buerhop-Lutz et al. 2018, CC BY-NC-SA 4.0), monocrystalline
cells only. Normal are the cells with defect probability 0, defective those with probability 1; cells in between are
omitted. Split, fixed: the normal cells in the package's order, shuffled by numpy's default_rng(0), give 200 training
and 100 test images; of the defective ones, shuffled alike, the first 100 are the defective test images and the next 10
the defects at hand, which say what the threshold lets pass, and teach the detector what to look for.

Every step is a command that you can repeat; it is printed before it runs. Everything lands in ``demo/``.

    python examples/demo.py                    # all of it
    python examples/demo.py --images parts     # only the images, and those of docs/tutorials
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
CATEGORY = DEMO / "solar_cell"
MODEL = DEMO / "model"
BUNDLE = DEMO / "solar_cell.edgead"
FRAMES = DEMO / "frames"
RESULTS = DEMO / "results.jsonl"
SHEET = DEMO / "contact-sheet.jpg"
AUDIT = DEMO / "audit.html"

N_TRAIN, N_TEST, N_DEFECTS = 200, 100, 10
N_BATCH = 20  # good cells of the new batch, and as many defective ones of the old kind
console = Console()


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--images"] and len(arguments) == 2:
        only_images(Path(arguments[1]))
        return
    if arguments:
        sys.exit("usage: python examples/demo.py [--images FOLDER]")
    started = time.perf_counter()
    shutil.rmtree(DEMO, ignore_errors=True)
    for folder, count in prepare(CATEGORY).items():
        console.print(f"{(CATEGORY / folder).relative_to(ROOT)}: {count} images")
    audited = edgead("audit", CATEGORY, "-o", AUDIT)
    fitted = edgead("fit", CATEGORY, "--detector", "patchcore", "-o", MODEL)
    edgead("export", MODEL, "-o", BUNDLE, "--images", CATEGORY / "test")
    evaluated = edgead("eval", BUNDLE, CATEGORY)
    checked = edgead("check", BUNDLE)
    ran = edgead(
        "run",
        BUNDLE,
        "--source",
        CATEGORY / "test",
        "--sink",
        f"jsonl:{RESULTS}",
        "--sink",
        f"images:{FRAMES}?only=all",
    )
    benched = edgead("bench", BUNDLE, "--frames", "100")
    contact_sheet()
    report(audited, fitted, evaluated, checked, ran, benched)
    console.print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at [bold]{SHEET.relative_to(ROOT)}[/bold].")


def prepare(category: Path) -> dict[str, int]:
    """Copy the images of the package into the folders of a category, and return how many each of them holds."""
    normal, defective = solar_cells("mono")
    return copy_images(
        category,
        {
            "train/good": normal[:N_TRAIN],
            "test/good": normal[N_TRAIN : N_TRAIN + N_TEST],
            "test/defective": defective[:N_TEST],
            "train/defective": defective[N_TEST : N_TEST + N_DEFECTS],
        },
    )


def only_images(folder: Path) -> None:
    """Make the images of the demo, and a shift with a new batch: polycrystalline cells, as good as the others."""
    for name in ("solar_cell", "new_batch"):
        if (folder / name).exists():
            sys.exit(f"{folder / name} is there already; remove it, or name another folder")
    made = {"solar_cell": prepare(folder / "solar_cell")}
    new, worn = solar_cells("poly")[0], solar_cells("mono")[1][N_TEST + N_DEFECTS :]
    made["new_batch"] = copy_images(folder / "new_batch", {"good": new[:N_BATCH], "defective": worn[:N_BATCH]})
    for name, counts in made.items():
        for part, count in counts.items():
            console.print(f"{folder / name / part}: {count} images")


def solar_cells(kind: str) -> tuple[list[Path], list[Path]]:
    """Return the package's normal and defective cells of a kind, ``mono`` or ``poly``, in a fixed order."""
    try:
        import elpv_dataset
    except ImportError:
        sys.exit("elpv-dataset is not installed; run: pip install 'edgead[demo]'")
    data = Path(elpv_dataset.__file__).parent / "data"
    with (data / "labels.csv").open() as stream:
        rows = [row for row in csv.reader(stream, delimiter=" ", skipinitialspace=True) if row]
    cells = [(data / row[0], float(row[1])) for row in rows if row[2] == kind]
    normal = _shuffled([path for path, probability in cells if probability == 0.0])
    return normal, _shuffled([path for path, probability in cells if probability == 1.0])


def copy_images(target: Path, parts: dict[str, list[Path]]) -> dict[str, int]:
    for folder, paths in parts.items():
        (target / folder).mkdir(parents=True)
        for path in paths:
            shutil.copyfile(path, target / folder / path.name)
    return {folder: len(paths) for folder, paths in parts.items()}


def _shuffled(paths: list[Path]) -> list[Path]:
    return [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]


def edgead(*arguments: object) -> dict[str, Any]:
    """Run one command of the tool and return its JSON."""
    words = [str(argument) for argument in arguments]
    shown = " ".join(word.replace(f"{ROOT}/", "") for word in words)
    console.print(f"[bold cyan]$ edgead {shown}[/bold cyan]", soft_wrap=True)
    command = [sys.executable, "-m", "edgead", words[0], *words[1:], "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def contact_sheet(columns: int = 6, cell: int = 300) -> None:
    """Put the six highest and the six lowest scores of each kind on one sheet, as the sink drew them."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    scored = sorted((line for line in lines if line["score"] is not None), key=lambda line: -line["score"])
    defective = [line for line in scored if line["name"].startswith("defective/")]
    good = [line for line in scored if line["name"].startswith("good/")]
    rows = {
        "defective cells, highest scores": defective[:columns],
        "defective cells, lowest scores": defective[-columns:],
        "good cells, highest scores": good[:columns],
        "good cells, lowest scores": good[-columns:],
    }
    title = 28
    sheet = Image.new("RGB", (columns * cell, len(rows) * (cell + title)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, members) in enumerate(rows.items()):
        top = number * (cell + title)
        draw.text((6, top + 4), text, fill="black", font_size=18)
        for column, line in enumerate(members):
            picture = next(FRAMES.glob(f"*-{line['frame_index']:06d}-{line['decision']}.jpg"))
            with Image.open(picture) as opened:
                sheet.paste(opened.resize((cell - 4, cell - 4)), (column * cell + 2, top + title))
    sheet.save(SHEET, quality=90)


def _learned(learned: dict[str, Any]) -> str:
    if not learned["strength"]:
        return f"nothing was learned from them: {learned['reason']}"
    return f"learned from them: maps rise by up to {learned['strength']:.0%}"


def report(
    audited: dict[str, Any],
    fitted: dict[str, Any],
    evaluated: dict[str, Any],
    checked: dict[str, Any],
    ran: dict[str, Any],
    benched: dict[str, Any],
) -> None:
    """Print what came out, also where it is modest."""
    category = evaluated["categories"][CATEGORY.name]
    manifest = _manifest()
    table = Table(title="edgead on real solar cells", show_header=False)
    stray, odd = len(audited["stray"]), len(audited["odd"])
    table.add_row(
        "audit", f"{audited['images']} good images of {audited['parts']} parts, {stray} stray, {odd} unlike the others"
    )
    table.add_row("fit", f"{fitted['seconds']:.0f} s, {N_TRAIN} good images")
    own = next(point for point in fitted["defects"]["points"] if point["own"])
    table.add_row(
        "defects at hand",
        f"{own['escapes']} of {fitted['defects']['images']} pass at the threshold  "
        f"(95 %: {own['escape_low']:.1%} to {own['escape_high']:.1%}), judged by models without them; "
        + _learned(fitted["defects"]["learned"]),
    )
    decisions = category["decisions"]
    for name, of, count, what in (
        ("escape_rate", "anomalous", "escapes", "defective cells passed"),
        ("false_alarm_rate", "normal", "false_alarms", "good cells rejected"),
    ):
        share = category[name]
        table.add_row(
            count.replace("_", " "),
            f"{decisions[count]} of {decisions[of]} {what} at the threshold  "
            f"(95 %: {share['low']:.1%} to {share['high']:.1%})",
        )
    table.add_row(
        "allowed escapes",
        ", ".join(f"{point['escapes']} at {point['at_false_alarm_rate'] * 100:g} %" for point in category["allowed"])
        + " false alarms, by thresholds chosen on these test images",
    )
    for name in ("image_auroc", "f1_max", "false_alarm_rate_at_zero_escapes"):
        metric = category[name]
        table.add_row(
            name.replace("_", " "), f"{metric['value']:.4f}  (95 %: {metric['low']:.4f} to {metric['high']:.4f})"
        )
    for runtime, record in manifest["parity"]["model.fp32.onnx"].items():
        changed = record["flips"] + record["borderline"]
        table.add_row(
            f"parity, {runtime}",
            f"{changed} of {record['images']} decisions changed, "
            f"max score difference {record['max_score_difference']:.1e}",
        )
    table.add_row("check on this device", "PASS" if checked["passed"] else "FAIL")
    frames = ran["frames"]
    table.add_row(
        "stream", ", ".join(f"{frames[name]} {name}" for name in ("captured", "inspected", "dropped", "failed"))
    )
    for row in benched["results"]:
        stages = row["latency_ms"]["stages"]
        table.add_row(
            f"latency, {row['backend']['name']}",
            "1280x1024 frame, median ms: "
            + ", ".join(f"{stage} {stages[stage]['p50']:.2f}" for stage in ("preprocess", "network", "decide"))
            + f"; camera to decision {row['latency_ms']['p50']:.2f}, p99 {row['latency_ms']['p99']:.2f}",
        )
    console.print(table)


def _manifest() -> dict[str, Any]:
    import zipfile

    with zipfile.ZipFile(BUNDLE) as archive:
        content: dict[str, Any] = json.loads(archive.read("manifest.json"))
    return content


if __name__ == "__main__":
    main(sys.argv[1:])
