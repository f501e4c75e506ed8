"""One model for many products: it finds out which product a part is, and judges it by that product's threshold.

    python examples/images.py parts
    python examples/many_products.py parts/mono parts/poly --unknown parts/modules/test/good

Takes 22 s on two cores.

Look at the table: each product has escapes and false alarms of its own, and its images went to the right product.
What is none of the products should be NOT_INSPECTED, and never passes: the line of unknown parts counts it.
``many_products.png`` shows the part of each product with the highest score. By commands:
``edgead fit parts/mono parts/poly --detector dfc --size 128 -o cells.model``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

import edgead
from edgead.runtime import Decision, EdgeadError, Inspector, read_image

SIDE = 220  # pixels of a picture on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("products", nargs="+", type=Path, help="one folder a product, with train/good and test")
    parser.add_argument("--unknown", type=Path, help="a folder of images that show none of the products")
    parser.add_argument("-o", "--output", type=Path, default=Path("many_products.edgead"), help="the bundle")
    asked = parser.parse_args()

    model = edgead.fit(asked.products, detector="dfc", size=128)
    model.export(asked.output, images=[product / "test" for product in asked.products])

    # From here on as on the station: one bundle, no torch.
    sheet = Image.new("RGB", (SIDE * len(asked.products), SIDE))
    with Inspector.open(asked.output) as inspect:
        print(f"{'product':12} {'defects that pass':>18} {'good rejected':>14} {'not inspected':>14}   taken for")
        for place, product in enumerate(asked.products):
            report = edgead.evaluate(inspect, edgead.open_category(product, need_test=True))
            decided = report.decisions
            taken_for = ", ".join(f"{name} {count}" for name, count in report.routed_to.items())
            print(
                f"{product.name:12} {f'{decided.escapes} of {decided.anomalous}':>18} "
                f"{f'{decided.false_alarms} of {decided.normal}':>14} {decided.not_inspected:>14}   {taken_for}"
            )
            judged = [one for one in report.images if one.decision is not Decision.NOT_INSPECTED]
            if not judged:
                continue
            worst = max(judged, key=lambda one: one.score / one.threshold)
            seen = inspect(read_image(product / worst.path))
            sheet.paste(Image.fromarray(seen.heatmap()).resize((SIDE, SIDE)), (SIDE * place, 0))
        if asked.unknown is not None:
            decisions = Counter(result.decision for result in inspect.stream(asked.unknown))
            print(f"unknown parts: {decisions[Decision.NOT_INSPECTED]} of {decisions.total()} not inspected")
    picture = asked.output.with_suffix(".png")
    sheet.quantize(64).save(picture)
    print(f"wrote {asked.output} and {picture}")


if __name__ == "__main__":
    try:
        main()
    except EdgeadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
