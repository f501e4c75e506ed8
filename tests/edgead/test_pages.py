"""The pages: whole, self-contained, escaped, with the figures of the JSON; and what `edgead report` says."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from edgead.comparing.summary import group_rows, summarise
from edgead.evaluation.decisions import ImageScore
from edgead.pages import plots
from edgead.pages.compare_page import compare_page
from edgead.pages.markup import Markup, document, element, join, number, table
from edgead.reporting import choose_images
from edgead.runtime.frame import Decision

HOSTILE = "<img src=x onerror=alert(1)>\"'&${x}"
VOID = {"br", "img", "meta"}


class Page(HTMLParser):
    """Checks that every element is closed in its place, and gathers what a page loads, runs and says."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.ids, self.images, self.text, self.attributes = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.images += [value for name, value in attrs if tag == "img" and name == "src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def check(text):
    """Parse a page and hold it to what every page promises."""
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.seen.count("html") == page.seen.count("h1") == page.seen.count("main") == 1
    plain = re.sub(r"data:image/\w+;base64,[\w+/=]*", "", text)
    assert not re.search(r"https?:|[\"'(]//|@import|url\((?!#)", plain)
    assert not {"link", "iframe", "object", "embed", "base", "form", "input"} & set(page.seen)
    assert page.seen.count("script") == 1
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("href", "src", "xlink:href") or value.startswith(("#", "data:image/")), (tag, value)
        if name == "href":
            assert value[1:] in page.ids
    said = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'; img-src data:;") for value in said)
    return page


def pictures(page):
    return [Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) for source in page.images]


def compared(rows, labels=()):
    payload = summarise(rows, labels)
    return payload, compare_page(payload, group_rows(rows, labels))


@pytest.fixture(scope="module")
def both(make_row):
    rows = [
        make_row(label, seed, category)
        for seed in (0, 1)
        for category in ("plate", "screw")
        for label in ("weak", "strong")
    ]
    payload, text = compared(rows)
    return payload, check(text), text


def test_the_comparison_shows_the_figures_of_the_json(both):
    payload, page, _ = both
    for one in payload["summary"]:
        metric = one["metrics"]["image_auroc"]
        assert f"{metric['mean']:.4f} {metric['low']:.4f} – {metric['high']:.4f}" in page.words
        assert f"{metric['min']:.4f} – {metric['max']:.4f}" in page.words
        if one["difference"]:
            test = one["difference"]["image_auroc"]
            assert f"{test['value']:+.4f} {test['low']:+.4f} to {test['high']:+.4f}" in page.words
    for one in payload["overall"]:
        assert f"{one['metrics']['image_auroc']['mean']:.4f}" in page.words
    assert "2 of 80" in page.words  # borderline changes of two seeds of 40 images
    assert "2 of 40 defective 5.0 % (0.1–24.9 %)" in page.words
    assert "4 of 40 good 10.0 % (1.2–31.7 %)" in page.words
    for one in payload["summary"]:
        for point in one["allowed"]:
            share = point["escape_rate"]
            assert f"{share['count']} of {share['images']} {share['mean'] * 100:.1f} %" in page.words
    order = ("Escapes and false alarms", "escapes allowed at 5 % false alarms", "not what a line gets", "image AUROC")
    assert sorted(order, key=page.words.index) == list(order)
    assert "openvino-bf16 reduced precision, not gated" in page.words
    assert "3.50" in page.words  # median of 3 and 4 ms


def test_sorting_sees_whole_figures(both):
    payload, page, _ = both
    values = [float(value) for tag, name, value in page.attributes if tag == "td" and name == "data-value"]
    assert {one["metrics"]["image_auroc"]["mean"] for one in payload["summary"]} <= set(values)


def test_every_plot_says_what_it_shows(both):
    _, page, text = both
    drawn = page.seen.count("svg")
    assert drawn == 3 + 2 + 4  # intervals, differences, speed; a ROC each category; a histogram each variant
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == drawn
    assert "ROC curves on screw" in labels
    assert "#010203" not in text  # colours of the page, so that dark mode can change them
    assert "<text" in text  # letters stay letters
    assert len(text) < 400_000


def test_the_same_rows_make_the_same_page(make_row, both):
    rows = [make_row(label, s, c) for s in (0, 1) for c in ("plate", "screw") for label in ("weak", "strong")]
    assert compared(rows)[1] == both[2]


@pytest.mark.parametrize("name", [HOSTILE, "</script><script>alert(1)</script>", "$x^{$", "ключ 画像 \u0007 \ud800"])
def test_hostile_names_are_text(make_row, name):
    rows = [make_row("a", 0, name), make_row("b", 0, name), make_row("c", 0, name, error=f"cannot read {name}")]
    payload, text = compared(rows)
    page = check(text.encode("utf-8", "replace").decode())
    assert "onerror=alert(1)>" not in text
    assert "alert(1)</script>" not in text
    if name.isprintable():
        assert name in page.words
        assert payload["failed"][0]["error"] in page.words


def test_a_comparison_without_figures_is_a_page_too(make_row):
    page = check(compared([make_row("a", error="no luck")])[1])
    assert "plate, a, seed 0 failed: no luck" in page.words
    assert page.seen.count("svg") == 0


def test_one_detector_alone_is_compared_with_nothing(make_row):
    page = check(compared([make_row("a"), make_row("a", 1)])[1])
    assert "Against" not in page.words


def test_text_is_escaped_where_it_is_put_in():
    made = element("td", HOSTILE, Markup("<b>1</b>"), None, title=HOSTILE, class_="x", data_value=None)
    assert made.count("<") == 4
    assert 'class="x"' in made
    assert "data-value" not in made
    assert join("<", 1.5, None) == "&lt;1.5"
    assert number("–", None).startswith('<td data-value="-Infinity"')
    check(document(HOSTILE, element("h1", HOSTILE), table([HOSTILE], [[HOSTILE], [element("td", "x")]], note=HOSTILE)))


def test_roc_curve_has_the_area_of_the_auroc():
    from edgead.metrics.metrics import image_auroc

    random = np.random.default_rng(3)
    anomalous = random.random(60) < 0.4
    for digits in (0, 3):
        scores = np.round(random.normal(size=60) + anomalous, digits)
        x, y = plots.roc_curve(scores, anomalous)
        area = float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())
        assert area == pytest.approx(image_auroc(scores, anomalous, bootstrap=0).value)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_mean_roc_has_the_area_of_the_mean_auroc(make_row):
    from edgead.pages.compare_sections import _mean_roc

    rows = [make_row("a", seed) for seed in range(3)]
    x, y = _mean_roc([row.outcome for row in rows])
    area = float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())
    assert area == pytest.approx(np.mean([row.outcome.metrics["image_auroc"].value for row in rows]))
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= -1e-12).all()


# The gallery.


def test_the_gallery_holds_what_tells_most_and_stays_small():
    random = np.random.default_rng(0)
    images = [
        ImageScore(f"{i}.png", None, bool(i % 2), float(score), 1.0, Decision.ANOMALY if score > 1 else Decision.OK)
        for i, score in enumerate(random.uniform(0, 2, 400))
    ]
    unknown = ImageScore("none.png", None, True, float("nan"), 1.0, Decision.NOT_INSPECTED, "unknown category")
    images += [unknown] * 3
    chosen = choose_images(images)
    assert len(chosen) == 24
    assert len({index for _, index in chosen}) == 24
    groups = {name: [images[i] for group, i in chosen if group == name] for name, _ in chosen}
    escapes = sorted(one.score for one in images if one.anomalous and one.decision is Decision.OK)
    alarms = sorted(
        (one.score for one in images if not one.anomalous and one.decision is Decision.ANOMALY), reverse=True
    )
    assert [one.score for one in groups["Worst escapes"]] == escapes[:6]
    assert [one.score for one in groups["Worst false alarms"]] == alarms[:6]
    assert min(one.score for one in groups["Good, nearest to the threshold"]) > 0.9
    assert all(0.3 < one.score < 0.7 for one in groups["Typical good"])
    assert [one.path for one in groups["Not inspected"]] == ["none.png"] * 2


# edgead report.


@pytest.fixture(scope="module")
def reported(plate, plate_bundle, tmp_path_factory):
    """The page of the small bundle, and what the command said."""
    from contextlib import redirect_stdout

    from edgead.cli import run

    path, out = tmp_path_factory.mktemp("report") / "report.html", io.StringIO()
    with redirect_stdout(out):
        code = run(["report", str(plate_bundle), str(plate), "--frames", "3", "--json", "-o", str(path)])
    assert code == 0
    return path, json.loads(out.getvalue()), check(path.read_text())


def test_a_report_shows_the_figures_of_the_evaluation(edgead, plate, plate_bundle, reported):
    path, payload, page = reported
    assert (payload["schema"], payload["page"]) == ("edgead.report/1", str(path))
    assert payload["page_bytes"] == path.stat().st_size < 4_000_000
    found = edgead("eval", plate_bundle, plate, "--json").json["categories"]["plate"]
    for name in ("image_auroc", "pixel_auroc", "aupro", "f1_max", "false_alarm_rate_at_zero_escapes"):
        assert payload[name] == found[name]
        assert f"{found[name]['value']:.4f} {found[name]['low']:.4f} – {found[name]['high']:.4f}" in page.words
    for name in ("decisions", "escape_rate", "false_alarm_rate", "allowed", "defects"):
        assert payload[name] == found[name]
    for point in found["allowed"]:
        share = point["escape_rate"]["value"]
        assert f"{point['escapes']} of {point['anomalous']} {share * 100:.1f} %" in page.words
    assert page.words.index("Escapes that the scores allow") < page.words.index(" ROC ") < page.words.index("F1-max")
    assert page.words.index("escapes") < page.words.index("false alarms") < page.words.index("image AUROC")
    assert f"{4 - found['decisions']['escapes']} of 4 defects found" in page.words
    assert payload["model"]["threshold"]["meaning"] in page.words
    for row in payload["latency"]["results"]:
        assert f"{row['latency_ms']['p50']:.2f}" in page.words
    for runtime, record in payload["parity"]["model.fp32.onnx"].items():
        assert f"{runtime} " in page.words
        assert f"{record['max_score_difference']:.1e}" in page.words


def test_a_report_shows_photos_heat_maps_and_masks(reported):
    _, payload, page = reported
    shown = pictures(page)
    assert 2 <= len(shown) <= 48
    assert len(shown) % 2 == 0
    for picture in shown:
        assert 64 <= max(picture.size) <= 256
    names = {image["path"] for image in payload["images"]}
    captions = set(re.findall(r"test/\w+/[\w.]+", page.words))
    assert captions <= names
    assert any(name.startswith("test/defect") for name in captions)
    # A defect's image carries the outline of its mask; a good one's does not.
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    cyan = {}
    for alt, picture in zip(alts, shown, strict=True):
        if alt.startswith("image"):
            pixels = np.asarray(picture).astype(int)
            cyan[alt] = int((np.minimum(pixels[..., 1], pixels[..., 2]) - pixels[..., 0] > 90).sum())
    defective, good = ([n for alt, n in cyan.items() if ("defect" in alt) is kind] for kind in (True, False))
    assert min(defective) > 3 * max(good) + 10, cyan


def test_a_report_names_no_folder_of_this_machine(reported, plate, plate_bundle):
    path, payload, _ = reported
    text = path.read_text()
    for folder in (plate.parent, plate_bundle.parent, path.parent):
        assert str(folder) not in text
        assert str(folder) not in json.dumps({**payload, "page": ""})


def test_a_report_of_a_model_directory(edgead, plate, plate_model, tmp_path):
    out = tmp_path / "r.html"
    outcome = edgead("report", plate_model, plate, "-o", out)
    assert outcome.code == 0
    order = ("escapes", "false alarms", "allowed escapes", "image AUROC")
    assert sorted(order, key=outcome.out.index) == list(order)
    page = check(out.read_text())
    assert "A model directory runs on torch and has no export record" in page.words
    assert "Not measured: only bundles are timed" in page.words
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_a_report_with_hostile_names_and_no_masks(edgead, plate, plate_bundle, tmp_path):
    category = shutil.copytree(plate, tmp_path / "<b>plate & co")
    shutil.rmtree(category / "ground_truth")
    defects = category / "test" / "defect"
    defects.rename(defects.with_name("<i>bent"))
    image = sorted((category / "test" / "<i>bent").iterdir())[0]
    image.rename(image.with_name("<img src=x onerror=alert(1)>.png"))
    out = tmp_path / "r.html"
    assert edgead("report", plate_bundle, category, "--no-latency", "-o", out).code == 0
    page = check(out.read_text())
    assert "test/<i>bent/<img src=x onerror=alert(1)>.png" in page.words
    assert "plate.edgead on <b>plate & co" in page.words
    assert "no masks" in page.words
    assert "Not measured: it was not asked for" in page.words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.edgead", "{plate}", "-o", "r.html"], "does not exist"),
        (["{bundle}", "none", "-o", "r.html"], "does not exist"),
        (["{bundle}", "{plate}", "-o", "none/r.html"], "make it or choose another -o"),
        (["{bundle}", "{plate}", "-o", "."], "give -o a file"),
        (["{bundle}", "{plate}/train", "-o", "r.html"], "train"),
        (["{bundle}", "{plate}", "--backend", "opnvino", "-o", "r.html"], "Did you mean 'openvino'?"),
    ],
)
def test_wrong_input_is_one_line_and_no_page(edgead, plate, plate_bundle, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    outcome = edgead("report", *(text.format(plate=plate, bundle=plate_bundle) for text in arguments))
    assert outcome.code == 2
    assert said in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_a_report_shows_what_a_precision_moved_most(edgead, plate, plate_model, tmp_path):
    bundle, out = tmp_path / "plate.edgead", tmp_path / "r.html"
    assert edgead("export", plate_model, "-o", bundle, "--fp16", "--images", plate / "test").code == 0
    outcome = edgead("report", bundle, plate, "--no-latency", "--json", "-o", out)
    assert outcome.code == 0
    page = check(out.read_text())
    record = outcome.json["parity"]["model.fp16.onnx"]["simulated-fp16"]
    assert record["auroc"] == pytest.approx(outcome.json["image_auroc"]["value"] + record["auroc_change"], abs=1e-6)
    assert "Largest differences" in page.words
    name = max(outcome.json["parity"]["model.fp16.onnx"].values(), key=lambda one: one["max_score_difference"])
    alts = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert f"heat map of {name['worst_image']} in fp32" in alts
    assert f"heat map of {name['worst_image']} in fp16" in alts
