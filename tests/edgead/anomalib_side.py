"""anomalib's side of `test_importing_real.py`: runs in an environment of its own, without edgead.

Reads a list of cases from a JSON file, fits each with anomalib's engine, and writes its checkpoint, its ONNX export and
its own raw scores of the same pixels and of the same files.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def fit(case: dict[str, Any], data: Path, folder: Path) -> Any:
    """Return a fitted model; its checkpoint is below ``folder``."""
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Padim, Patchcore
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from lightning.pytorch import seed_everything
    from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

    seed_everything(0)
    steps = [Resize(tuple(case["size"]), antialias=True)]
    if case.get("crop"):
        steps.append(CenterCrop(tuple(case["crop"])))
    steps.append(Normalize(mean=case["mean"], std=case["std"]))
    common = {
        "backbone": case["backbone"],
        "layers": case["layers"],
        "pre_trained": False,
        "pre_processor": PreProcessor(transform=Compose(steps)),
        "post_processor": PostProcessor(image_sensitivity=case.get("sensitivity", 0.5)),
        "visualizer": False,
    }
    if case["detector"] == "patchcore":
        neighbours = case.get("neighbours", 9)
        model = Patchcore(coreset_sampling_ratio=case["ratio"], num_neighbors=neighbours, **common)
    else:
        model = Padim(n_features=case["features"], **common)
    if case.get("weights"):
        import torch

        network = model.model.feature_extractor.feature_extractor
        state = torch.load(case["weights"], weights_only=True)
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    module = Folder(
        name="peer",
        normal_dir=str(data / "train" / "good"),
        abnormal_dir=[str(one) for one in sorted((data / "test").iterdir()) if one.name != "good"],
        normal_test_dir=str(data / "test" / "good"),
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        val_split_mode="same_as_test",
    )
    engine = Engine(default_root_dir=folder, logger=False, enable_progress_bar=False, accelerator="cpu")
    engine.fit(model=model, datamodule=module)
    return model.eval()


def main(plan: Path) -> None:
    """Work through the cases of ``plan``."""
    import torch
    from anomalib.data.utils import read_image

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for case in json.loads(plan.read_text()):
        folder = Path(case["folder"])
        model = fit(case, Path(case["data"]), folder)
        # Its default, axes of any length, does not export every size with this version of torch.
        model.to_onnx(folder, input_size=tuple(case.get("export") or case["size"]), dynamic_axes={})
        last = model.pre_processor.transform.transforms[1:]
        same, maps, own, decided = [], [], [], []
        with torch.inference_mode():
            for pixels in np.load(case["pixels"]):
                tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
                for step in last:
                    tensor = step(tensor)
                found = model.model(tensor)
                same.append(float(found.pred_score))
                maps.append(found.anomaly_map[0, 0].numpy())
                decided.append(bool(model.post_processor(found).pred_label))
            for file in case["files"]:
                image = model.pre_processor.transform(read_image(file, as_tensor=True)[None])
                own.append(float(model.model(image).pred_score))
        np.savez(folder / "scores.npz", same=same, maps=np.stack(maps), own=own, decided=decided)
        print(f"fitted {case['name']}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
