"""How a training went: losses and judgements, as a record and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class LossPoint(BaseModel):
    """Losses of a stage, means over the steps since the point before; ``step`` is how many were done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    step: int
    losses: dict[str, float]


class Judgement(BaseModel):
    """What the judge said after so many steps of a stage, higher is better; ``chosen`` marks what was kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    step: int
    value: float
    chosen: bool = False


class TrainingLog(BaseModel):
    """How a training went. It holds no times, so that equal runs have equal logs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    points: tuple[LossPoint, ...] = ()
    judgements: tuple[Judgement, ...] = ()

    def gain(self) -> float | None:
        """Return how much better the kept state was judged than its stage's start; None where nobody judged."""
        kept = next((one for one in reversed(self.judgements) if one.chosen), None)
        started = [
            one.value for one in self.judgements if kept is not None and (one.stage, one.step) == (kept.stage, 0)
        ]
        return kept.value - started[0] if kept is not None and started else None


def draw_log(log: TrainingLog) -> bytes:
    """Return the loss curves and the judgements of a training as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(point.stage for point in log.points))
    figure = Figure(figsize=(6.0 * max(1, len(stages)), 3.6), layout="constrained")
    for place, stage in enumerate(stages):
        points = [point for point in log.points if point.stage == stage]
        axes = figure.add_subplot(1, len(stages), place + 1)
        steps = [point.step for point in points]
        for name in sorted(points[0].losses):  # a saved log has them in another order
            axes.plot(steps, [point.losses[name] for point in points], lw=1, alpha=0.7, label=name)
        if len(points[0].losses) > 1:
            axes.plot(steps, [sum(point.losses.values()) for point in points], color="black", lw=1.6, label="sum")
        axes.set(title=stage, xlabel="step", ylabel="loss", yscale="log" if _all_positive(points) else "linear")
        judged = [one for one in log.judgements if one.stage == stage]
        if judged:
            twin = axes.twinx()
            twin.plot([one.step for one in judged], [one.value for one in judged], "o--", color="tab:red", ms=4)
            twin.set_ylabel("held-out probes", color="tab:red")
            for one in judged:
                if one.chosen:
                    twin.plot(one.step, one.value, "o", ms=10, mfc="none", mec="tab:red")
        axes.legend(loc="lower left", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _all_positive(points: Sequence[LossPoint]) -> bool:
    return all(value > 0 for point in points for value in point.losses.values())
