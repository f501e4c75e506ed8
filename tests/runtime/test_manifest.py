from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgead.runtime.bundle.layout import check_member_name
from edgead.runtime.bundle.manifest import Manifest, parse_manifest
from edgead.runtime.bundle.manifest_schema import ThresholdSection
from edgead.runtime.decision.threshold import Threshold, calibrate
from edgead.runtime.errors import BundleError

SHA = "0" * 64
PARITY = {
    "max_score_difference": 1e-5,
    "p99_score_difference": 1e-5,
    "max_map_difference": 2e-5,
    "flips": 0,
    "borderline": 0,
    "images": 40,
}


@pytest.fixture
def content(make_manifest: Callable[..., Manifest]) -> dict[str, Any]:
    manifest = make_manifest(members={"model.fp32.onnx": {"sha256": SHA, "size": 7}})
    loaded: dict[str, Any] = json.loads(manifest.to_json())
    return loaded


def parse(content: Any) -> Manifest:
    return parse_manifest(json.dumps(content).encode(), "part.edgead")


def refused(content: Any) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(content if isinstance(content, bytes) else json.dumps(content).encode(), "part.edgead")
    message = str(caught.value)
    assert "part.edgead" in message
    assert "\n" not in message
    return message


def test_what_is_written_is_read(content: dict[str, Any]) -> None:
    content["parity"] = {"model.fp32.onnx": {"openvino": {**PARITY, "note": "weights rounded only"}}}
    content["provenance"] = {"deep": [{"a": None, "b": [1, 2.5, "ü", False]}], "calibrations": []}
    content["precisions"]["fp16"] = {
        "file": "model.fp16.onnx",
        "runtimes": ["tensorrt"],
        "threshold": {**content["threshold"], "value": 0.1 + 0.2},
    }
    manifest = parse(content)
    again = parse_manifest(manifest.to_json(), "again")
    assert again == manifest
    assert again.to_json() == manifest.to_json()
    assert again.precisions["fp16"].threshold is not None
    assert again.precisions["fp16"].threshold.value == 0.1 + 0.2


def test_json_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    turned = {key: content[key] for key in reversed(content)}
    turned["detector"]["settings"] = dict(reversed(content["detector"]["settings"].items()))
    assert parse(turned).to_json() == parse(content).to_json()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=200),
    st.floats(1e-4, 0.5),
)
def test_thresholds_survive_the_trip(scores: list[float], rate: float) -> None:
    threshold = calibrate(scores, rate)
    section = ThresholdSection.from_threshold(threshold)
    assert ThresholdSection.model_validate_json(section.model_dump_json()).to_threshold() == threshold
    assert isinstance(section.to_threshold(), Threshold)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("input", "height"), 0, "input.height"),
        (("input", "width"), 8193, "input.width"),
        (("input", "height"), 8.5, "input.height"),
        (("input", "height"), "256", "input.height"),
        (("input", "height"), True, "input.height"),
        (("input", "color"), "BGR", "input.color"),
        (("threshold", "value"), None, "threshold.value"),
        (("threshold", "value"), "1.0", "threshold.value"),
        (("threshold", "value"), 10**400, "threshold.value"),
        (("threshold", "target_false_alarm_rate"), 0.0, "threshold.target_false_alarm_rate"),
        (("threshold", "low"), 0.9, "threshold"),
        (("threshold", "n_normals"), -1, "threshold.n_normals"),
        (("score_direction",), "lower is more anomalous", "score_direction"),
        (("graph",), "mystery", "graph"),
        (("name",), "two\nlines", "name"),
        (("name",), "", "name"),
        (("map",), None, "map grid"),
        (("precisions",), {}, "precisions"),
        (("precisions", "fp32", "file"), "sub/model.onnx", "precisions.fp32.file"),
        (("precisions", "fp32", "file"), "../model.onnx", "precisions.fp32.file"),
        (("precisions", "fp32", "file"), "model.pkl", "precisions.fp32.file"),
        (("members", "model.fp32.onnx", "sha256"), "0" * 63, "members.model.fp32.onnx.sha256"),
        (("members", "model.fp32.onnx", "size"), -1, "members.model.fp32.onnx.size"),
        (("members", "../../etc/passwd"), {"sha256": SHA, "size": 1}, "members"),
        (("members", "manifest.json"), {"sha256": SHA, "size": 1}, "members"),
        (("members", "Signature.ED25519"), {"sha256": SHA, "size": 1}, "members"),
        (("categories", "a/b"), {"n_train": 1}, "categories"),
        (("parity", "model.fp32.onnx"), {"openvino": {**PARITY, "flips": -1}}, "flips"),
        (("parity", "model.fp32.onnx"), {"openvino": {**PARITY, "max_score_difference": -0.1}}, "max_score_difference"),
    ],
)
def test_a_wrong_field_is_named(content: dict[str, Any], path: tuple[str, ...], value: Any, named: str) -> None:
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert named in refused(content)


@pytest.mark.parametrize("key", ["name", "detector", "input", "threshold", "precisions"])
def test_a_missing_field_is_named(content: dict[str, Any], key: str) -> None:
    del content[key]
    assert f"'{key}'" in refused(content)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ["threshold", "settings", "provenance"])
def test_numbers_are_finite_everywhere(content: dict[str, Any], number: str, place: str) -> None:
    if place == "threshold":
        content["threshold"]["value"] = "PUT"
    elif place == "settings":
        content["detector"]["settings"]["x"] = [{"y": "PUT"}]
    else:
        content["provenance"]["x"] = {"y": ["PUT"]}
    refused(json.dumps(content).replace('"PUT"', number).encode())


def test_a_newer_format_is_named_before_its_fields_are_judged() -> None:
    assert refused({"format_version": 2, "unheard": "of"}) == (
        "part.edgead was made by a newer edgead (format 2); upgrade edgead"
    )
    assert "newer edgead" in refused({"format_version": 10**300})


@pytest.mark.parametrize(
    ("path", "named"), [((), "extra"), (("input",), "input.extra"), (("precisions", "fp32"), "precisions.fp32.extra")]
)
def test_a_field_that_is_unknown_is_of_a_newer_version(
    content: dict[str, Any], path: tuple[str, ...], named: str
) -> None:
    place = content
    for key in path:
        place = place[key]
    place["extra"] = [0.5]
    message = refused(content)
    assert f"field '{named}' is unknown to this edgead" in message
    assert "a newer one made it; upgrade edgead" in message
    assert "damaged" not in message


@pytest.mark.parametrize("version", [0, -1, "1", None, True, 1.0, [1]])
def test_no_other_format_version_is_accepted(content: dict[str, Any], version: Any) -> None:
    content["format_version"] = version
    assert "format" in refused(content)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b"null",
        b"{",
        b'{"format_version": 1',
        b"[" * 500_000,
        b'{"format_version": 1, "format_version": 1}',
        b'\xef\xbb\xbf{"format_version": 1}',
        b'{"format_version": ' + b"1" * 5000 + b"}",
        b'{"format_version": 1, "name": "\\ud800"}',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    refused(data)


def test_a_key_that_appears_twice_is_refused(content: dict[str, Any]) -> None:
    # Readers differ in which of the two they believe.
    data = json.dumps(content)[:-1] + ', "name": "other"}'
    assert "twice" in refused(data.encode())


def test_a_large_manifest_is_refused(content: dict[str, Any]) -> None:
    content["provenance"] = {"x": "y" * (1 << 20)}
    assert "1 MiB" in refused(content)


def test_another_resize_rule_is_refused(content: dict[str, Any]) -> None:
    content["input"]["resize"] = "lanczos/7"
    assert "upgrade edgead" in refused(content)


def test_a_routed_bundle_may_leave_the_grid_to_its_heads(content: dict[str, Any]) -> None:
    content |= {"graph": "routed", "map": None}
    content["categories"] = {
        "plate": {"n_train": 9, "threshold": content["threshold"], "minimum_similarity": 0.5},
    }
    assert parse(content).map is None


@pytest.mark.parametrize("missing", ["threshold", "minimum_similarity"])
def test_a_routed_bundle_states_how_each_category_is_judged(content: dict[str, Any], missing: str) -> None:
    category = {"n_train": 9, "threshold": content["threshold"], "minimum_similarity": 0.5}
    content |= {"graph": "routed", "categories": {"plate": {**category, missing: None}}}
    with pytest.raises(BundleError, match="plate"):
        parse(content)


def test_manifests_are_frozen(content: dict[str, Any]) -> None:
    manifest = parse(content)
    with pytest.raises(ValueError, match="frozen"):
        manifest.threshold.value = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["model.fp32.onnx", "weights/" + SHA + ".bin", "references/Straße 1.png", "références/été.png"]
)
def test_ordinary_names_are_safe(name: str) -> None:
    assert check_member_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:/x", "C:x", "a\0b"),
        *("a\nb", "a\u202eb", "\ud800", "con", "NUL.txt", "x/com1.bin", "a.", "a /b", "x" * 241, "a*", "a|b", 'a"b'),
    ],
)
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unsafe member name"):
        check_member_name(name)
