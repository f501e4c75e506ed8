"""A network of your own as the backbone: any convolutional network or transformer of timm, with weights you trained.

    python examples/images.py parts
    python examples/own_backbone.py parts/mono parts/poly

Takes 14 s on two cores.

Here the network learns to tell two products apart, as many a plant has one that does. Its weights go into a file, and
``backbone="NAME@FILE"`` takes them: the last layers are cut off, the rest is frozen. Look at the two AUROC lines: the
default, trained on a million photographs, is the one to beat, and a network that has seen few images seldom does.
Which networks are taken, and what transformers cost: docs/backbones.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import edgead
from edgead.runtime import EdgeadError, read_image
from edgead.runtime.imaging.decode import find_images
from edgead.runtime.imaging.preprocess import resize

NAME = "resnet10t"  # of timm
SIDE = 64  # pixels, of the images that it is trained on
EPOCHS = 5


def train(products: list[Path], file: Path) -> None:
    """Train a classifier of products in plain torch, and save its weights."""
    import timm
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    files = [
        (path, label) for label, product in enumerate(products) for path in find_images([product / "train" / "good"])
    ]
    pixels = torch.from_numpy(np.stack([resize(read_image(path), SIDE, SIDE) for path, _ in files]))
    torch.manual_seed(0)
    network = timm.create_model(NAME, num_classes=len(products))
    # Normalised as edgead feeds it: with the mean and deviation that the model names.
    mean, deviation = (torch.tensor(network.default_cfg[key])[:, None, None] for key in ("mean", "std"))
    images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / deviation
    loader = DataLoader(TensorDataset(images, torch.tensor([label for _, label in files])), 16, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for epoch in range(EPOCHS):
        right = 0
        for batch, labels in loader:
            answers = network(batch)
            loss = torch.nn.functional.cross_entropy(answers, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((answers.argmax(1) == labels).sum())
        print(f"epoch {epoch + 1}: {right} of {len(files)} told apart")
    torch.save(network.state_dict(), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("category", type=Path, help="the product to inspect, with train/good and test")
    parser.add_argument("other", nargs="+", type=Path, help="other products, to tell it from")
    parser.add_argument("-o", "--output", type=Path, default=Path("own_backbone.pth"), help="the weights")
    asked = parser.parse_args()
    train([asked.category, *asked.other], asked.output)

    for backbone in ("efficientnet_lite0", f"{NAME}@{asked.output}"):
        model = edgead.fit(asked.category, backbone=backbone, size=128)
        report = model.evaluate(asked.category)
        print(f"{backbone}: image AUROC {report.image_auroc.value:.3f}, {report.decisions.escapes} defects pass")
    bundle = asked.output.with_suffix(".edgead")
    model.export(bundle, images=[asked.category / "test"])
    print(f"wrote {bundle}: the station needs neither torch nor timm nor {asked.output}")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
