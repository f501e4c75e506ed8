"""Bundles that an earlier version wrote, kept in ``earlier/`` with what that version made of six images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgead.runtime.backends.saturation_probe import saturates
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import BackendUnavailable
from edgead.runtime.inspection.inspector import Inspector

FOLDER = Path(__file__).with_name("earlier")
BUNDLES = sorted(FOLDER.glob("*.edgead"))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 110, 3), dtype=np.uint8)


@pytest.mark.parametrize("bundle", BUNDLES, ids=[path.stem for path in BUNDLES])
def test_it_opens_checks_and_decides_as_it_did(bundle: Path) -> None:
    recorded = json.loads(bundle.with_suffix(".json").read_text())
    for precision, rows in recorded.items():
        asked = {"backend": "onnxruntime", "precision": precision, "threads": 1}
        if precision == "int8-cpu" and saturates("onnxruntime"):
            with pytest.raises(BackendUnavailable, match="exported by an earlier version"):
                Inspector.open(bundle, **asked)
            continue
        assert check_bundle(bundle, **asked).passed
        with Inspector.open(bundle, **asked) as inspect:
            for seed, (score, decision, category, threshold) in enumerate(rows):
                found = inspect(picture(seed))
                assert (found.decision.value, found.category) == (decision, category)
                assert found.threshold.hex() == threshold
                # Sums of float32 in the head are taken in another order on other processors.
                assert found.score == pytest.approx(float.fromhex(score), rel=1e-5)


def test_there_is_one_of_each_kind() -> None:
    assert [path.stem for path in BUNDLES] == ["precisions", "routed-heads", "routed-one", "single"]
