"""A device profile: what is written is used where it holds, and omitted with one line anywhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgead.runtime.backends import available
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import ConfigError
from edgead.runtime.inspection.device_profile import (
    Choice,
    Device,
    DeviceProfile,
    Measured,
    read_profile,
    settle,
    versions_of,
)
from edgead.runtime.inspection.inspector import Inspector

pytestmark = pytest.mark.skipif("onnxruntime" not in available(), reason="needs onnxruntime (edgead[cpu])")

PRECISIONS: dict[str, Any] = {
    "fp32": {"file": "model.fp32.onnx", "runtimes": ["onnxruntime", "openvino"]},
    "int8-cpu": {"file": "model.int8-cpu.onnx", "runtimes": ["onnxruntime"]},
}


@pytest.fixture
def bundle(make_bundle, tiny_model, tiny_threshold) -> Path:
    """A bundle of two precisions, each with its own threshold."""
    own = {**tiny_threshold.to_dict(), "value": 21.0}
    precisions = {**PRECISIONS, "int8-cpu": {**PRECISIONS["int8-cpu"], "threshold": own}}
    graph = tiny_model.graph().SerializeToString()
    return make_bundle(files={"model.int8-cpu.onnx": graph}, precisions=precisions)


def profile_of(bundle: Path, **choice: Any) -> DeviceProfile:
    """A profile that holds here."""
    asked = {"backend": "onnxruntime", "precision": "int8-cpu", "threads": 1, "native_code": "absent", **choice}
    with Bundle.open(bundle) as opened:
        return DeviceProfile(
            bundle_name=opened.manifest.name,
            bundle_sha256=opened.sha256,
            device=Device.here(),
            versions=versions_of(asked["backend"]) if asked["backend"] in available() else {},
            choice=Choice(**asked),
            measured=Measured(
                p50_ms=7.25,
                p99_ms=9.5,
                frame_width=640,
                frame_height=480,
                peak_mb=131.0,
                drift=0.01,
                budget_ms=10.0,
                budget_mb=None,
                at="2026-11-22T10:00:00+00:00",
            ),
        )


def test_what_is_saved_is_what_an_inspector_runs(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "profiles"
    profile = profile_of(bundle)
    file = profile.save(place)
    assert file == place / f"{profile.bundle_sha256}.json"
    assert read_profile(file) == profile
    assert json.loads(file.read_bytes())["schema"] == "edgead.profile/1"
    for where in (place, file):
        with Inspector.open(bundle, profile=where) as inspect:
            assert inspect.describe().precision == "int8"
            assert inspect.describe().threads == 1
            # The precision's own threshold, not the bundle's.
            assert inspect.threshold == 21.0
            assert inspect.left_out is None
            for expected in ("device profile: onnxruntime int8-cpu, 1 thread ", "7.25 ms", "131 MB", "2026-11-22"):
                assert expected in inspect.why
            assert inspect.self_test() == []
    report = check_bundle(bundle, profile=place)
    assert (report.precision, report.threshold, report.passed) == ("int8-cpu", 21.0, True)
    assert report.why.startswith("device profile: ")
    assert sorted(path.name for path in place.iterdir()) == [file.name]


@pytest.mark.parametrize("asked", [{"backend": "onnxruntime"}, {"precision": "fp32"}, {"threads": 2}])
def test_asking_by_name_overrides_all_of_it(bundle: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    profile_of(bundle).save(tmp_path)
    with Inspector.open(bundle, profile=tmp_path, **asked) as inspect:
        assert inspect.threshold == 20.0
        assert inspect.describe().precision == "fp32"
        assert inspect.describe().threads == asked.get("threads", 0)
        assert "profile" not in inspect.why
        assert inspect.left_out is None
    report = check_bundle(bundle, profile=tmp_path, **asked)
    assert report.precision == "fp32"


def test_without_a_profile_nothing_is_said(bundle: Path, tmp_path: Path) -> None:
    with Inspector.open(bundle, profile=tmp_path / "nothing") as inspect:
        assert inspect.why.startswith("auto: onnxruntime")
        assert inspect.left_out is None
        assert inspect.describe().precision == "fp32"


def changed(profile: DeviceProfile, path: str, value: Any) -> str:
    """A profile's JSON with another value at a dotted path; None removes it."""
    content = profile.model_dump(mode="json", by_alias=True)
    *parents, last = path.split(".")
    inner = content
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("bundle_sha256", "0" * 64, "another bundle ('tiny'"),
        ("device.cpu", "Another CPU", "another device (Another CPU, "),
        ("device.cores", 999, "999 cores"),
        ("device.gpus", ["Orin (compute capability 8.7)"], "Orin"),
        ("versions.onnxruntime", "1.0.0", "measured with onnxruntime 1.0.0, here is"),
        ("versions.edgead", "9.9", "measured with edgead 9.9"),
        ("versions", {}, "None, here is"),
        ("choice.precision", "int4", "no precision 'int4'"),
        ("choice.precision", "../../etc/passwd", "no precision"),
        ("choice.backend", "abacus", "no backend 'abacus'"),
        ("choice.backend", "tensorrt", "tensorrt cannot be used here"),
        ("choice.native_code", "used", "native code was removed"),
        ("choice.native_code", "perhaps", "damaged (field 'choice.native_code'"),
        ("choice.threads", 0, "damaged (field 'choice.threads'"),
        ("choice.threads", "2", "damaged (field 'choice.threads'"),
        ("choice.model", "other.onnx", "'choice.model' is unknown to this edgead"),
        ("measured.p50_ms", "NaN", "damaged (field 'measured.p50_ms'"),
        ("device", None, "damaged (field 'device'"),
        ("schema", "edgead.profile/2", "form edgead.profile/2, this edgead reads edgead.profile/1"),
        ("schema", "edgead.tune/1", "no device profile"),
    ],
)
def test_a_profile_that_does_not_hold_is_left_out_with_one_line(
    bundle: Path, tmp_path: Path, path: str, value: Any, expected: str
) -> None:
    file = profile_of(bundle).save(tmp_path)
    file.write_text(changed(profile_of(bundle), path, value))
    with Inspector.open(bundle, profile=tmp_path) as inspect:
        assert inspect.left_out is not None
        assert expected in inspect.left_out
        assert inspect.left_out.startswith(f"the device profile {file} is omitted: ")
        assert inspect.left_out.endswith(f"run: edgead tune {bundle}")
        assert "\n" not in inspect.left_out
        assert (inspect.threshold, inspect.describe().precision) == (20.0, "fp32")
        assert inspect.why.startswith("auto: ")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": "edgead.profile/1"}', b"[" * 60_000, b" " * 70_000],
    ids=["empty", "cut", "list", "null", "bytes", "bare", "deep", "large"],
)
def test_a_damaged_profile_is_left_out(bundle: Path, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "line3.json"
    file.write_bytes(data)
    with Bundle.open(bundle) as opened:
        found = settle(opened, file, "onnxruntime", "auto")
    assert found.left_out is not None
    assert "\n" not in found.left_out
    assert (found.choice.backend, found.choice.precision, found.choice.threads) == ("onnxruntime", "fp32", None)


def test_a_folder_in_the_place_of_a_profile_is_no_profile(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "line3.json").mkdir()
    with Inspector.open(bundle, profile=tmp_path / "line3.json") as inspect:
        assert inspect.describe().precision == "fp32"


def test_a_reloaded_bundle_has_its_own_profile_or_none(
    bundle: Path, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    profile_of(bundle).save(tmp_path / "profiles")
    other = make_bundle("other.edgead", provenance={"note": "another"})
    with Inspector.open(bundle, profile=tmp_path / "profiles") as inspect:
        # The other bundle lacks the profile's precision, and goes on all the same.
        inspect.swap(other)
        assert (inspect.describe().precision, inspect.threshold) == ("fp32", 20.0)
        assert inspect.why.startswith("auto: ")
        assert inspect.self_test() == []
        inspect.swap(bundle)
        assert (inspect.describe().precision, inspect.threshold) == ("int8", 21.0)
        assert inspect.self_test() == []


def test_a_place_that_cannot_be_written_is_one_line(bundle: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match=r"cannot write the device profile .* choose another place with --profile"):
        profile_of(bundle).save(blocked / "profiles")
