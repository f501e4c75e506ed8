"""``edgead fit``: its options, what it warns of, and its tables."""

from __future__ import annotations

import time
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgead.cli._app import command
from edgead.cli._each import fit_each_category
from edgead.cli._options import (
    AlignOption,
    BitsOption,
    DefectRateOption,
    FalseAlarmCostOption,
    MaskOption,
    RayOption,
    RayTaskOption,
    RoiOption,
    SizeOption,
    TapsOption,
    parse_settings,
    parse_size,
    parse_taps,
    refuse_task_alone,
    require,
    word,
)
from edgead.cli.terminal.completion import complete_detector

if TYPE_CHECKING:
    from edgead.cli._output import Output
    from edgead.model.card_sections import BudgetCard, DefectsCard, LearnedDefectsCard
    from edgead.runtime.decision.threshold import Threshold

_SHOWN = 3  # of the highest scores

PANEL = "Train, measure, export"

_Categories = Annotated[
    list[Path],
    typer.Argument(
        metavar="CATEGORY_DIR...",
        help="Folder with train/good (or only normal images), or a CSV list.",
        show_default=False,
    ),
]


@command("fit", panel=PANEL, example="edgead fit parts/plate --detector patchcore --set bank_size=2048 -o plate.model")
def fit(
    out: Output,
    categories: _Categories,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="MODEL_DIR", help="Where the model goes.", show_default=False)
    ],
    detector: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="patchcore, padim, npad, fre, protoad; slsg, sgsf, isstad, cutpaste, "
            "efficientad train a network; dfc takes several categories; A+B adds up what two say.",
            autocompletion=complete_detector,
        ),
    ] = "patchcore",
    backbone: Annotated[
        str, typer.Option(metavar="NAME[@WEIGHTS]", help="A timm model; WEIGHTS: hub, random, a file or a folder.")
    ] = "efficientnet_lite0",
    taps: TapsOption = None,
    size: SizeOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides every random choice.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the detector; repeat it.", show_default=False),
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(metavar="X", help="Share of good parts that may be rejected.")
    ] = 0.01,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A training image to omit; repeat it.", show_default=False),
    ] = None,
    keep_stray: Annotated[
        bool,
        typer.Option("--keep-stray", help="Learn also from images that show nothing or score far beyond the others."),
    ] = False,
    defects: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Defective images, a folder a kind: what the threshold lets pass, and what to look for. Those in "
            "train/KIND count too.",
            show_default=False,
        ),
    ] = None,
    learn_defects: Annotated[
        bool,
        typer.Option(
            "--learn-defects/--no-learn-defects",
            help="Learn from defects, as far as cross-validation shows that it helps; or only judge them.",
        ),
    ] = True,
    cost_escape: Annotated[
        float | None,
        typer.Option(metavar="X", help="Cost of a defect that passes; with both costs the cheapest threshold counts."),
    ] = None,
    cost_false_alarm: FalseAlarmCostOption = None,
    defect_rate: DefectRateOption = 0.01,
    budget_mb: Annotated[
        float | None,
        typer.Option(metavar="X", help="Largest bundle on disk, in MB of 10^6 bytes.", show_default="no limit"),
    ] = None,
    budget_ms: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Longest time from camera to decision: median over 1280x1024 frames, on this machine. Either budget "
            "chooses what --set leaves open, by measurement.",
            show_default="no limit",
        ),
    ] = None,
    roi: RoiOption = None,
    mask: MaskOption = None,
    tiles: Annotated[
        str | None,
        typer.Option(metavar="RxC", help="Rows and columns of tiles, each of --size.", show_default="none"),
    ] = None,
    tile_overlap: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cells of the map that neighbouring tiles share.")
    ] = 4,
    align: AlignOption = False,
    bits: BitsOption = None,
    each: Annotated[
        bool, typer.Option("--each", help="One model a category: MODEL_DIR becomes the folder of NAME.model.")
    ] = False,
    ray: RayOption = None,
    ray_task: RayTaskOption = None,
) -> None:
    """Train on images of normal parts, and set the threshold from good parts that the model has not seen.

    With --roi or --mask the model judges that part of a frame only, and refuses frames of another size than the images.
    With --each the same command goes on where it stopped, and exits with 3 where a category failed.
    """
    refuse_task_alone(ray, ray_task)
    network_size = None if size is None else parse_size(size)
    chosen, strides = parse_settings(settings or ()), None if taps is None else parse_taps(taps)
    require("train", "torch", "torchvision", "timm", "safetensors")
    if budget_mb is not None or budget_ms is not None:
        require("export", "onnx", "onnxscript")
    from edgead.evaluation.costs import parse_costs
    from edgead.fitting import FitConfig
    from edgead.fitting import fit as fit_model
    from edgead.fitting.fit_report import fit_payload, model_warnings
    from edgead.model.model import check_model_path
    from edgead.runtime.bundle.layout import SUFFIX
    from edgead.runtime.errors import ConfigError
    from edgead.runtime.imaging.roi import parse_box
    from edgead.runtime.imaging.tiling import parse_tiles

    config = FitConfig(
        detector=detector,
        settings=chosen,
        backbone=backbone,
        taps=strides,
        size=network_size,
        seed=seed,
        false_alarm_rate=false_alarm_rate,
        exclude=exclude or (),
        keep_stray=keep_stray,
        defects=defects,
        learn_defects=learn_defects,
        costs=parse_costs(cost_escape, cost_false_alarm, defect_rate),
        budget_mb=budget_mb,
        budget_ms=budget_ms,
        roi=None if roi is None else parse_box(roi),
        mask=mask,
        tiles=None if tiles is None else parse_tiles(tiles),
        tile_overlap=tile_overlap,
        align=align,
        bits=bits,
    )
    if each:
        fit_each_category(out, categories, output, config, ray, ray_task)
        return
    if ray is not None:
        raise ConfigError("--ray fits several models at once; add --each")
    check_model_path(output)
    # Of a learned detector; the same command after an interruption goes on from it.
    checkpoint = output.with_name(f".{output.name}.training")

    started = time.perf_counter()
    with out.progress() as step:
        model = fit_model(categories, config, checkpoint=checkpoint, progress=step)
    model.save(output)
    checkpoint.unlink(missing_ok=True)
    payload = fit_payload(model, output, time.perf_counter() - started)
    for text in model_warnings(model, payload):
        out.warn(text)
    curve = () if model.card.budget is None else (_budget_table(model.card.budget),)
    bundle = output.parent / (output.name.removesuffix(".model") + SUFFIX)
    following = ("edgead", "export", word(output), "-o", word(bundle))
    tables = (*curve, *_points(payload, model.card.defects), _fit_table(payload, model.threshold))
    out.finish(payload, *tables, next_command=following)


def _fit_table(payload: dict[str, Any], threshold: Threshold) -> Any:
    from edgead.cli._output import listing

    thresholds = {"threshold": threshold.explain()}
    one_scale = "audit" in payload and "routing" not in payload
    if "routing" in payload:
        thresholds = {f"threshold of {name}": one["meaning"] for name, one in payload["thresholds"].items()}
    return listing(
        f"Fitted {payload['model']}",
        {
            "detector": f"{payload['detector']}, "
            + ", ".join(f"{name}={value}" for name, value in payload["settings"].items()),
            "backbone": f"{payload['backbone']['name']}, weights: {payload['backbone']['weights']}",
            "network size": f"{payload['size']['height']}x{payload['size']['width']} pixels (height x width)",
            "good images": ", ".join(f"{name}: {count}" for name, count in payload["categories"].items()),
            **({"aligned": _alignment(payload["align"])} if "align" in payload else {}),
            **({"bits of 16-bit files": str(payload["bits"])} if "bits" in payload else {}),
            **thresholds,
            **({"highest scores": _highest(payload["audit"], threshold)} if one_scale else {}),
            "planted defects": "{passed} of {images}, painted on images it was fitted on, would pass as OK".format(
                **payload["planted_defects"]
            ),
            "seconds": f"{payload['seconds']:.1f}",
        },
    )


def _highest(audit: dict[str, Any], threshold: Threshold) -> str:
    shown = [
        f"{name} {score:.5g}" + (" (above the threshold)" if score > threshold.value else "")
        for name, score in [*audit["unusual"].items()][:_SHOWN]
    ]
    above = sum(score > threshold.value for score in [*audit["unusual"].values()][_SHOWN:])
    more = f", and {above} more above the threshold" if above else ""
    return f"{', '.join(shown)}{more}; look whether these are normal parts, and --exclude NAME what is none"


def _alignment(align: dict[str, Any]) -> str:
    turned = "turned and moved back" if align["turns"] else "moved back, not turned: it is round"
    return f"the part is {turned}; one that overlaps by less than {align['minimum'] / 10:.1f} % is not inspected"


def _points(payload: dict[str, Any], defects: DefectsCard | None) -> list[Any]:
    if defects is not None:
        return [_defects_table(defects)]
    return [_targets_table(payload)] if "targets" in payload else []


def _targets_table(payload: dict[str, Any]) -> Any:
    from edgead.cli._output import table

    planted, normals = payload["planted_defects"]["images"], next(iter(payload["thresholds"].values()))["n_normals"]
    rows = [
        [
            ", ".join(_aim(one["target_false_alarm_rate"], one["own"]) for one in alike),
            f"{alike[0]['threshold']:.5g}",
            f"{alike[0]['normals_above']} of {normals}",
            f"{alike[0]['planted_passed']} of {planted}",
        ]
        # So few good images may give several rates one threshold.
        for alike in (list(group) for _, group in groupby(payload["targets"], key=itemgetter("threshold")))
    ]
    title = "What --false-alarm-rate does on the same images"
    return table(title, ["aims at false alarms", "threshold", "normals above it", "planted defects that pass"], rows)


def _aim(rate: float, own: bool) -> str:
    return f"{100 * rate:.3g}%" + (" (the model's)" if own else "")


def _defects_table(card: DefectsCard) -> Any:
    from edgead.cli._output import table

    kinds = ", ".join(f"{kind} {escapes} of {images}" for kind, (images, escapes) in card.kinds.items())
    title = f"{card.images} defects at hand, judged by models without them; escapes at the threshold: {kinds}"
    if card.learned is not None:
        title += f". {_explain_learned(card.learned)}"
    if card.costs is not None:
        title += (
            f". Chosen by costs; judged without the image: {card.costs.escape_rate:.1%} escapes, "
            f"{card.costs.false_alarm_rate:.1%} false alarms, {card.costs.cost_per_1000:.4g} for 1,000 parts"
        )
    rows = [
        [
            ", ".join(_aim(point.target_false_alarm_rate, point.own) for point in alike),
            f"{alike[0].threshold:.5g}",
            f"{alike[0].false_alarms} of {alike[0].normals}",
            f"{alike[0].escapes} of {card.images}",
            f"{alike[0].escape_low:.1%} to {alike[0].escape_high:.1%}",
        ]
        for alike in (list(group) for _, group in groupby(card.points, key=attrgetter("threshold")))
    ]
    return table(title, ["aims at false alarms", "threshold", "false alarms", "escapes", "of such defects"], rows)


def _explain_learned(card: LearnedDefectsCard) -> str:
    if not card.strength:
        return f"Nothing was learned from them: {card.reason}"
    before, after = (card.normal_share[str(strength)] for strength in (0.0, card.strength))
    return (
        f"Learned from them: maps rise by up to {card.strength:.0%} where patches look like these defects; judged by "
        f"models that have not seen them, {after:.1%} in place of {before:.1%} of the normal images score as high as a "
        "defect (geometric mean)"
    )


def _budget_table(card: BudgetCard) -> Any:
    from edgead.cli._output import milliseconds, table

    limits = ((card.budget_mb, "MB"), (card.budget_ms, "ms"))
    title = (
        f"Within {' and '.join(f'{value:g} {unit}' for value, unit in limits if value is not None)}: "
        f"{card.held_out} good images and {card.probes} painted defects, judged by models of {card.fitted} others; "
        f"times on {card.backend['name']}"
    )
    names = list(card.curve[0].settings)
    rows = []
    for number, rung in enumerate(card.curve):
        mark = "chosen" if number == card.chosen else "" if rung.fits else "over budget"
        figures = [f"{rung.auroc:.4f} ± {rung.standard_error:.4f}", f"{rung.bytes / 1e6:.2f}", milliseconds(rung.ms)]
        rows.append([mark, *("-" if value is None else f"{value}" for value in rung.settings.values()), *figures])
    return table(title, ["", *names, "AUROC on painted defects", "MB", "ms"], rows)
