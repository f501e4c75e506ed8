"""What the Python loader refuses libedgead refuses with the same line: the loader's own tests, run on both."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import parse_manifest
from edgead.runtime.errors import BundleError
from tests.runtime import test_bundle, test_manifest
from tests.runtime.capi.wrapper import CError, Library
from tests.runtime.test_bundle import raw_zip

# Tests of what is written, or of Python's own files and threads, say nothing of another reader.
_BUNDLES = [
    "test_a_bundle_cut_at_any_byte_is_refused",
    "test_no_flipped_byte_changes_what_is_loaded",
    "test_bytes_that_belong_to_nothing_are_refused",
    "test_two_bundles_in_one_file_are_refused",
    "test_what_is_no_bundle_is_said_so",
    "test_what_is_no_file_is_said_so",
    "test_the_hostile_factory_makes_good_bundles_too",
    "test_a_hostile_member_is_refused",
    "test_a_claimed_size_is_refused_without_allocating_it",
    "test_a_missing_member_is_refused",
    "test_a_newer_format_is_said_so",
    "test_a_bundle_without_a_manifest_is_refused",
    "test_a_thousand_times_too_many_members_are_refused",
    "test_bytes_hidden_before_the_directory_are_refused",
]
_MANIFESTS = [
    "test_a_wrong_field_is_named",
    "test_a_missing_field_is_named",
    "test_numbers_are_finite_everywhere",
    "test_a_newer_format_is_named_before_its_fields_are_judged",
    "test_a_field_that_is_unknown_is_of_a_newer_version",
    "test_no_other_format_version_is_accepted",
    "test_what_is_no_manifest_is_refused",
    "test_a_key_that_appears_twice_is_refused",
    "test_a_large_manifest_is_refused",
    "test_another_resize_rule_is_refused",
    "test_a_routed_bundle_may_leave_the_grid_to_its_heads",
    "test_a_routed_bundle_states_how_each_category_is_judged",
]
globals().update({name: getattr(test_bundle, name) for name in [*_BUNDLES, "small", "hostile"]})
globals().update({name: getattr(test_manifest, name) for name in [*_MANIFESTS, "content"]})

_open = Bundle.open.__func__  # type: ignore[attr-defined]
_compared: list[str] = []


def plain(line: str) -> str:
    """A line without what a JSON library says of where it stopped.

    A number beyond a double is no JSON to one of them and no finite number to the other, as is half a surrogate pair.
    """
    line = re.sub(
        r"manifest field .*(a finite number|is not finite|Invalid JSON.*);", "the manifest is not valid JSON;", line
    )
    return re.sub(r"not valid JSON \(.*\);", "not valid JSON;", line)


def compare(capi: Library, path: str | Path) -> None:
    """Hold what both say of a file against each other; C opens the graphs too, which here are none."""
    expected = found = None
    try:
        with _open(Bundle, path):
            pass
    except BundleError as error:
        expected = str(error)
    try:
        capi.open(path).close()
    except CError as error:
        # Its graph is none, which is found out after all that is compared here.
        found = None if error.status == "BACKEND_FAILED" else error.message
    assert plain(found or "opened") == plain(expected or "opened")
    _compared.append(found or "opened")


@pytest.fixture(autouse=True)
def _on_both(capi: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the tests of other files open whatever they open, or parse, with both."""

    def opened(cls: type[Bundle], path: str | Path, **how: Any) -> Bundle:
        if "\0" not in str(path):  # which C cannot even be told
            compare(capi, path)
        return _open(cls, path, **how)  # type: ignore[no-any-return]

    def parsed(data: bytes, label: str) -> Any:
        path = tmp_path / "around.edgead"
        path.write_bytes(raw_zip([{"name": b"manifest.json", "data": data, "crc": zlib.crc32(data)}]))
        compare(capi, path)
        return parse_manifest(data, label)

    monkeypatch.setattr(Bundle, "open", classmethod(opened))
    monkeypatch.setattr(test_manifest, "parse_manifest", parsed)
    _compared.clear()
    yield
    assert _compared


# --- what these tests do not ask -------------------------------------------------------------------------------------

_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    9000,
    1.5,
    0.0,
    -0.5,
    1e9,
    1 << 53,
    1 << 70,
    "",
    "x",
    "a/b",
    [],
    ["x", 1],
]
_VALUES += [{}, {"x": 1}, "ü\u200b", "x" * 201, "CON", "RGB", "mask.png", [0.1] * 21, "reduce-bilinear/1", "single"]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*place, key)
        yield from _places(child, (*place, key))


def _mutate(whole: Any, generator: np.random.Generator) -> None:
    """Change one place of a manifest: another value, one less, or one more."""
    places = list(_places(whole))
    *path, last = places[generator.integers(len(places))]
    holder = whole
    for key in path:
        holder = holder[key]
    how = generator.integers(4)
    if how == 0 and isinstance(holder, dict):
        holder.pop(last, None)
    elif how == 1 and isinstance(holder, dict):
        holder[f"{last}_"] = holder[last]
    else:
        holder[last] = json.loads(json.dumps(_VALUES[generator.integers(len(_VALUES))]))


@pytest.fixture
def full(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest in which every section is there."""
    threshold = content["threshold"]
    quantiles = {name: [index / 10 for index in range(21)] for name in ("score", "level", "brightness", "focus")}
    region = {"frame_width": 40, "frame_height": 30, "x": 1, "y": 2, "width": 20, "height": 16, "mask": "mask.png"}
    content["input"] |= {"region": region, "tiles": {"rows": 2, "columns": 3, "overlap": 1}, "bits": 12}
    content["categories"]["blau ü"] = {
        "threshold": threshold,
        "minimum_similarity": 0.25,
        "n_train": 5,
        "normals": {"images": 9, "quantiles": quantiles},
    }
    content["precisions"]["fp32"] |= {"threshold": threshold, "categories": {"plate": threshold}, "max_drop": 0.05}
    content["parity"] = {"model.fp32.onnx": {"openvino": {**test_manifest.PARITY, "auroc": 0.5, "note": "n"}}}
    return content


def _changed(content: dict[str, Any], seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    changed: dict[str, Any] = json.loads(json.dumps(content))
    if seed % 3 == 1:
        changed["graph"] = "routed"
        changed["input"]["tiles"] = None
    if seed % 3 == 2:
        changed["input"]["tiles"] = None
        numbers = ("frame_width", "frame_height", "canvas_width", "canvas_height", "window_width", "window_height")
        align = dict.fromkeys(numbers, 16) | {"window_x": 0, "window_y": -3, "minimum": 600, "turns": True}
        changed["input"] |= {"align": align, "region": None}
    for _ in range(1 + seed % 4):
        _mutate(changed, generator)
    return changed


@pytest.mark.parametrize("start", range(0, 1500, 250))
def test_mutated_manifests_are_judged_alike(full: dict[str, Any], start: int) -> None:
    for seed in range(start, start + 250):
        try:
            test_manifest.parse(_changed(full, seed))
        except BundleError:
            continue
    # Both kinds are among them.
    lines = _compared
    assert any("manifest field" in line for line in lines)
    assert any("is missing" in line for line in lines)


@pytest.mark.parametrize("name", ["É.bin", "ſ.bin", "ж.bin", "か.bin", "가.bin", "a\u200b.bin", "ß.bin", "ǆ.bin"])
def test_names_beyond_ascii_fold_alike(capi: Library, name: str, hostile: Callable[..., Path]) -> None:
    for other in {name.casefold(), name.upper(), name.swapcase(), "ss.bin", "z.bin"} - {name}:
        names = [{"name": one.encode(), "flags": 0x800} for one in (name, other)]
        compare(capi, hostile(*names))


def test_what_only_python_reads_is_refused_by_name(capi: Library, hostile: Callable[..., Path]) -> None:
    for name in ("e\u0301.bin", "שלום.bin", "\U00020000.bin"):
        path = hostile({"name": name.encode(), "flags": 0x800})
        with pytest.raises(CError, match="BUNDLE_UNSUPPORTED") as caught:
            capi.open(path)
        assert repr(name) in caught.value.message
        assert "use the Python runtime" in caught.value.message
    compare(capi, hostile())
