"""What edgead imports beside anomalib 2.7.0 itself, in an environment of its own (6.6 GB, built once and kept).

`EDGEAD_PEERS` names the folder of the environment; by default it is that of `benchmarks.peers`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers import PINNED, build_environment, write_weights
from edgead.importing import import_anomalib
from edgead.runtime.imaging.decode import find_images, read_image
from edgead.runtime.imaging.preprocess import resize

pytestmark = pytest.mark.slow

LITE0: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "layers": ["blocks.2", "blocks.4"]}
HALF: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CASES: list[dict[str, Any]] = [
    {"name": "patchcore", "detector": "patchcore", "ratio": 0.01, "size": [256, 256], **LITE0, **HALF},
    {"name": "padim", "detector": "padim", "features": 40, "size": [256, 256], "export": [300, 400], **LITE0, **HALF},
    # anomalib's own defaults of architecture, here with random weights: the hub's would have to be fetched.
    {
        **{"name": "cropped", "detector": "patchcore", "ratio": 0.01, "size": [256, 256], "crop": [224, 224]},
        **{"neighbours": 1, "sensitivity": 0.3, "backbone": "resnet18", "layers": ["layer2", "layer3"]},
        **{"export": [512, 640], **IMAGENET},
    },
    {
        **{"name": "three", "detector": "padim", "features": 60, "size": [128, 160]},
        **{"backbone": "resnet18", "layers": ["layer1", "layer2", "layer3"], **IMAGENET},
    },
]


@pytest.fixture(scope="module")
def fitted(made_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case -> folder with its checkpoint, export and scores."""
    work = Path(os.environ.get("EDGEAD_PEERS", Path.home() / ".cache" / "edgead" / "peers"))
    work.mkdir(parents=True, exist_ok=True)
    python = build_environment(work / "anomalib-2.7.0", PINNED)
    folder = tmp_path_factory.mktemp("anomalib")
    write_weights(folder / "lite0.pt")
    data = made_images / "plate"
    files = find_images([data / "test"])
    plan = []
    for case in CASES:
        own = folder / case["name"]
        own.mkdir()
        np.save(own / "pixels.npy", np.stack([resize(read_image(file), *case["size"]) for file in files]))
        weights = {"weights": str(folder / "lite0.pt")} if case["backbone"] == LITE0["backbone"] else {}
        paths = {
            "folder": str(own),
            "data": str(data),
            "pixels": str(own / "pixels.npy"),
            "files": list(map(str, files)),
        }
        plan.append({**case, **paths, **weights})
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [str(python), str(Path(__file__).with_name("anomalib_side.py")), str(folder / "plan.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "TRUST_REMOTE_CODE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {case["name"]: folder / case["name"] for case in CASES}


@pytest.mark.parametrize("kind", ["ckpt", "onnx"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_raw_scores_maps_and_labels_are_anomalibs(
    case: dict[str, Any], kind: str, fitted: dict[str, Path], made_images: Path
) -> None:
    folder = fitted[case["name"]]
    (path,) = folder.rglob(f"*.{kind}")
    data = made_images / "plate"
    good = [data / "train" / "good"]
    imported = import_anomalib(path, "plate", images=[data / "test"], calibration=good).exportable
    theirs, pixels = np.load(folder / "scores.npz"), np.load(folder / "pixels.npy")
    found = imported.torch_backend().run(pixels)
    np.testing.assert_allclose(found.score, theirs["same"], rtol=1e-4)
    inner = case.get("crop") or case["size"]
    grid = [cells * side // whole for cells, side, whole in zip(imported.grid, inner, case["size"], strict=True)]
    means = F.adaptive_avg_pool2d(torch.from_numpy(theirs["maps"])[:, None], grid)[:, 0].numpy()
    top, left = ((whole - cells) // 2 for whole, cells in zip(imported.grid, grid, strict=True))
    judged = found.map[:, top : top + grid[0], left : left + grid[1]]
    np.testing.assert_allclose(judged, means, atol=1e-4 * float(means.max()))
    # The image that the threshold was taken from may lie on either side of it by rounding.
    clear = np.abs(theirs["same"] - imported.threshold.value) > 1e-4 * np.abs(theirs["same"])
    assert ((found.score > imported.threshold.value) == theirs["decided"])[clear].all()
    # From the file on the resize differs too: antialiased floats there, whole numbers here.
    spread = np.ptp(theirs["own"])
    assert float(np.median(np.abs(found.score - theirs["own"]))) < 0.05 * spread
