"""The training loop: schedules, selection, and that a killed run ends where an uninterrupted one does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgead.detectors.networks.blocks import Depthwise
from edgead.runtime.errors import ConfigError, DataError
from edgead.training.checkpoints import Checkpoint
from edgead.training.recipes import Recipe, Stage
from edgead.training.training import choose_device, run_key, train
from edgead.training.training_log import TrainingLog, draw_log

STEPS = 12


class Net(nn.Module):
    """A convolution, a normalisation and noise: parameters, buffers and torch's generator all matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(nn.functional.dropout(torch.relu(self.norm(self.conv(x))), 0.2, self.training))


def make(steps: int = STEPS, seconds_a_step: float = 0.0, **changes: Any) -> tuple[Net, list[Stage]]:
    torch.manual_seed(5)
    net, helper = Net(), nn.Conv2d(2, 1, 1)

    def batch(rng: np.random.Generator) -> dict[str, Any]:
        time.sleep(seconds_a_step)
        return {"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)}

    def first(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"restore": helper(net(tensors["x"])).square().mean()}

    def second(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        out = net(tensors["x"])
        return {"size": out.square().mean(), "mean": 0.1 * out.mean().abs()}

    recipe = Recipe(**{"steps": steps, "batch": 4, "optimiser": "adamw", "learning_rate": 0.02, **changes})
    judged = Recipe(
        **{"steps": steps, "batch": 4, "optimiser": "sgd", "learning_rate": 0.02, "evaluations": 4, **changes}
    )
    return net, [
        Stage("first", recipe, [net.conv, net.norm, helper], batch, first, helper),
        Stage("second", judged, [net.conv, net.norm], batch, second, start=lambda: net.norm.reset_running_stats()),
    ]


def judge(network: nn.Module) -> float:
    return float(sum(p.abs().sum() for p in network.parameters()))


def run(net: Net, stages: list[Stage], **more: Any) -> TrainingLog:
    return train(net, stages, **{"seed": 1, "judge": judge, "device": "cpu", **more})


def weights(net: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


# Schedules


def test_the_learning_rate_follows_its_schedule() -> None:
    recipe = Recipe(steps=110, batch=1, optimiser="adam", learning_rate=1.0, warm_up=10, floor=0.1)
    assert [recipe.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert recipe.rate(60) == pytest.approx(0.55)
    assert recipe.rate(109) == pytest.approx(0.1, abs=1e-3)
    swinging = Recipe(steps=100, batch=1, optimiser="adam", learning_rate=1.0, period=20)
    assert [swinging.rate(step) for step in (0, 10, 20, 40)] == pytest.approx([1.0, 0.5, 0.0, 1.0])
    drops = Recipe(steps=100, batch=1, optimiser="adam", learning_rate=1.0, schedule="drops", drops=(0.5, 0.7, 0.9))
    assert [drops.rate(step) for step in (0, 49, 50, 70, 99)] == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.001])
    assert Recipe(steps=9, batch=1, optimiser="sgd", learning_rate=0.3, schedule="constant").rate(8) == 0.3


def test_judgements_are_spread_evenly_and_the_last_step_is_one() -> None:
    recipe = Recipe(steps=10, batch=1, optimiser="sgd", learning_rate=1.0, evaluations=3)
    assert [step for step in range(10) if recipe.judged(step)] == [3, 6, 9]
    assert not any(Recipe(steps=10, batch=1, optimiser="sgd", learning_rate=1.0).judged(step) for step in range(10))


# One run


def test_equal_seeds_give_equal_weights_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(77)
    before = torch.random.get_rng_state()
    results = []
    for seed in (1, 1, 2):
        net, stages = make()
        torch.manual_seed(77)
        run(net, stages, seed=seed)
        results.append(weights(net))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_only_what_a_stage_names_is_trained_and_the_network_ends_frozen() -> None:
    net, stages = make()
    before = net.frozen.weight.clone()
    conv = net.conv.weight.clone()
    log = run(net, stages)
    assert torch.equal(net.frozen.weight, before)
    assert not torch.equal(net.conv.weight, conv)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert [point.step for point in log.points] == [*range(1, STEPS + 1)] * 2
    assert list(log.points[-1].losses) == ["size", "mean"]


def test_the_best_judged_state_is_kept_and_patience_ends_a_stage() -> None:
    values = iter([0.1, 0.2, 0.9, 0.5, 0.4])
    states: list[dict[str, bytes]] = []

    def scripted(network: nn.Module) -> float:
        assert not network.training
        states.append(weights(network))
        return next(values)

    net, stages = make()
    log = run(net, stages, judge=scripted)
    assert weights(net) == states[2]
    expected = [(0, False), (3, False), (6, True), (9, False), (12, False)]
    assert [(one.step, one.chosen) for one in log.judgements] == expected

    values = iter([0.1, 0.5, 0.4, 0.3, 0.2])
    net, stages = make(patience=2)
    log = run(net, stages, judge=scripted)
    assert [one.step for one in log.judgements] == [0, 3, 6, 9]
    assert log.points[-1].step == 9


def test_a_training_that_does_not_help_is_seen_and_never_leaves_an_untrained_network() -> None:
    values = iter([0.9, 0.2, 0.5, 0.4, 0.9])
    states: list[dict[str, bytes]] = []

    def scripted(network: nn.Module) -> float:
        states.append(weights(network))
        return next(values)

    net, stages = make()
    log = run(net, stages, judge=scripted)
    assert [one.step for one in log.judgements if one.chosen] == [12]
    assert weights(net) == states[-1] != states[0]
    assert log.gain() == 0.0

    values = iter([0.5, 0.2, 0.9, 0.4, 0.3])
    net, stages = make()
    assert run(net, stages, judge=scripted).gain() == pytest.approx(0.4)
    assert TrainingLog().gain() is None


def test_what_is_measured_is_set_before_each_judgement() -> None:
    net, stages = make()
    order: list[str] = []
    stages[1] = replace(stages[1], settle=lambda: order.append("settle"))

    def judge(_: nn.Module) -> float:
        order.append("judge")
        return 0.0

    run(net, stages, judge=judge)
    assert order == ["settle", "judge"] * 5


def test_a_loss_that_is_not_finite_ends_the_training_with_its_step() -> None:
    net, stages = make(learning_rate=1e30, clip=None)
    with pytest.raises(DataError, match=r"training broke down: first, step \d+, .*lower learning_rate"):
        run(net, stages)


def broken_in_bfloat16(monkeypatch: pytest.MonkeyPatch, worse: bool = False) -> tuple[Net, list[Stage], list[bool]]:
    """Return a training whose loss is no number in bfloat16, and with ``worse`` in float32 too; it notes its steps."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # any processor computes it, if slowly
    net, (stage, _) = make(mixed=True, clip=None)
    halves: list[bool] = []

    def losses(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        halves.append(torch.is_autocast_enabled("cpu"))
        factor = float("nan") if worse or (halves[-1] and len(halves) > 3) else 1.0
        return {"restore": factor * net(tensors["x"]).square().mean()}

    return net, [replace(stage, trained=[net.conv, net.norm], losses=losses, helper=None)], halves


def test_a_cpu_trains_in_bfloat16_until_a_step_is_not_finite_and_does_that_one_again_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, stages, halves = broken_in_bfloat16(monkeypatch)
    run(net, stages)
    assert halves == [True] * 4 + [False] * (STEPS - 3)
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())
    assert net.conv.weight.is_contiguous()


def test_what_is_not_finite_in_float32_either_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    net, stages, halves = broken_in_bfloat16(monkeypatch, worse=True)
    with pytest.raises(DataError, match="training broke down: first, step 1,"):
        run(net, stages)
    assert halves == [True, False]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_processor_without_bfloat16_trains_in_float32(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, stages, halves = broken_in_bfloat16(monkeypatch)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: not mixed)
    stages = [replace(one, recipe=replace(one.recipe, mixed=mixed)) for one in stages]
    run(net, stages)
    assert halves == [False] * STEPS


def test_a_depthwise_convolution_trains_in_float32() -> None:
    layer, features = Depthwise(4, 4, 3, padding=1, groups=4), torch.rand(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.train()(features.bfloat16()).dtype == torch.float32
        assert layer.eval()(features).dtype == torch.bfloat16
    torch.testing.assert_close(layer(features), nn.functional.conv2d(features, layer.weight, layer.bias, 1, 1, 1, 4))


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no NVIDIA GPU"):
            choose_device("cuda")
    assert choose_device("cpu").type == "cpu"


# Checkpoints


class CutError(Exception):
    """Ends a run from inside, as a crash would."""


@pytest.mark.parametrize("cut", [1, 5, STEPS, STEPS + 3, 2 * STEPS - 1])
def test_a_run_that_was_cut_ends_with_the_same_weights_and_log(cut: int, tmp_path: Path) -> None:
    whole, stages = make()
    expected = run(whole, stages)
    done = 0

    def stop(_stage: str, _done: int, _total: int) -> None:
        nonlocal done
        done += 1
        if done == cut:
            raise CutError

    file = tmp_path / "run.training"
    net, stages = make()
    with pytest.raises(CutError):
        run(net, stages, checkpoint=Checkpoint(file, "k", 0.0), progress=stop)
    steps: list[str] = []
    net, stages = make()
    log = run(net, stages, checkpoint=Checkpoint(file, "k", 0.0), progress=lambda s, *_: steps.append(s))
    assert weights(net) == weights(whole)
    assert log == expected
    assert len(steps) == 2 * STEPS - max(0, cut - 1)  # the step that was cut is done again, no other
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_of_another_run_or_a_damaged_one_counts_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.training"
    net, stages = make()
    run(net, stages, checkpoint=Checkpoint(file, run_key({"seed": 1})))
    expected = weights(net)
    for content, key in ((file.read_bytes(), run_key({"seed": 2})), (b"half a file", run_key({"seed": 1}))):
        file.write_bytes(content)
        steps: list[str] = []
        net, stages = make()
        run(net, stages, checkpoint=Checkpoint(file, key), progress=lambda s, *_, steps=steps: steps.append(s))
        assert len(steps) == 2 * STEPS
        assert weights(net) == expected
    # A finished one has nothing left to do.
    steps = []
    net, stages = make()
    run(net, stages, checkpoint=Checkpoint(file, run_key({"seed": 1})), progress=lambda s, *_: steps.append(s))
    assert steps == []
    assert weights(net) == expected


# A process that has a child killed in the middle, goes on from what it left, and does the whole once more.
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # a fork has none of its parent's threads
sys.path.insert(0, {folder!r})
from test_training import Checkpoint, make, run, weights
killed = Path(sys.argv[1]) / "killed"

def work(checkpoint, last=None):
    net, stages = make(steps=60, seconds_a_step=0.01)
    steps = []

    def progress(stage, *_):
        steps.append(stage)
        if len(steps) == last:
            assert killed.exists()
            os.kill(os.getpid(), signal.SIGKILL)

    kept = None if checkpoint is None else Checkpoint(checkpoint, "k", 0.1)
    run(net, stages, checkpoint=kept, progress=progress)
    return weights(net), len(steps)

child = os.fork()
if child == 0:
    work(killed, last=90)
    os._exit(0)
assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
resumed, left = work(killed)
whole, every = work(None)
assert resumed == whole
assert 0 < left < every == 120, (left, every)
"""


def test_a_process_that_is_killed_in_the_middle_of_a_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# The picture


def test_the_curve_is_a_png_that_depends_on_the_log_alone() -> None:
    net, stages = make()
    log = run(net, stages)
    assert draw_log(log)[:8] == b"\x89PNG\r\n\x1a\n"
    saved = json.dumps(log.model_dump(), sort_keys=True)
    assert draw_log(log) == draw_log(TrainingLog.model_validate_json(saved))
