"""One training loop for every learned detector: seeded, resumable to the bit, selected on probes and never on a test.

Everything random in a step is drawn from (seed, stage, step) alone, so a run that was killed and goes on from its
checkpoint draws what an uninterrupted one draws, and ends with the same weights on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgead.data import prefetch
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import Progress, silent
from edgead.training.checkpoints import Checkpoint, Position, Saver, load_optimiser, optimiser_tensors, read_checkpoint
from edgead.training.recipes import Batch, Recipe, Stage
from edgead.training.training_log import Judgement, LossPoint, TrainingLog

Judge = Callable[[nn.Module], float]
Device = Literal["auto", "cpu", "cuda"]

_POINTS = 100  # of the loss curve a stage
# Threads that make batches; a GPU is done with one before a single thread has made the next.
_CPU_WORKERS, _GPU_WORKERS = 1, 6


# More than six parameters: what is trained, and how; scripts pass the rest by name.
def train(
    network: nn.Module,
    stages: Sequence[Stage],
    *,
    seed: int,
    judge: Judge | None = None,
    device: Device = "auto",
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> TrainingLog:
    """Train a network through its stages, in place; it ends on the CPU, in eval mode, frozen.

    A GPU trains in mixed precision (bfloat16, which needs no loss scaling) where it has it; a CPU in float32, but for
    stages whose recipe asks for it on a processor that has it.

    Args:
        network: what the stages' losses use, helpers aside.
        stages: in order.
        seed: decides every random choice.
        judge: gives the value that selects the state to keep; called in inference mode.
        device: ``auto`` takes a GPU where there is one.
        checkpoint: where the training is kept, and gone on from; None: nowhere.
        progress: called with ``(stage | losses, done, total)``.

    Raises:
        ConfigError: no such device.
        DataError: a loss that is not finite, or a checkpoint that cannot be written.
    """
    target = choose_device(device)
    network.to(target)
    position, tensors = read_checkpoint(checkpoint)
    if tensors:
        network.load_state_dict(_part(tensors, "network/"))
    saver = Saver(checkpoint)
    plan = _Plan(network, stages, seed, target, judge)
    with _repeatable(target):
        for number in range(position.stage, len(stages)):
            run = _Run(plan, number, position)
            run.begin(tensors)
            tensors = {}
            run.advance(saver, progress)
            run.finish()
            position.stage, position.step, position.best, position.stale = number + 1, 0, None, 0
            saver.save(position, {f"network/{name}": value for name, value in network.state_dict().items()}, True)
    network.to("cpu").to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return TrainingLog(points=tuple(position.points), judgements=tuple(position.judgements))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all stages of a training share."""

    network: nn.Module
    stages: Sequence[Stage]
    seed: int
    device: torch.device
    judge: Judge | None


class _Run:
    """One stage under way."""

    def __init__(self, plan: _Plan, number: int, position: Position) -> None:
        stage = plan.stages[number]
        self._network, self._stage, self._number, self._position = plan.network, stage, number, position
        self._seed, self._device, self._judge = plan.seed, plan.device, plan.judge
        self._best: dict[str, Tensor] = {}
        helpers = [] if stage.helper is None else [stage.helper]
        self._all = nn.ModuleList([plan.network, *helpers]).to(plan.device)
        self._half = _mixed(plan.device, stage.recipe)
        if self._half and plan.device.type == "cpu":
            self._all.to(memory_format=torch.channels_last)

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the modules, the optimiser and what a checkpoint holds of them."""
        if self._position.step == 0 and self._stage.start is not None:
            torch.manual_seed(_step_seed(self._seed, self._number, self._stage.recipe.steps))
            self._stage.start()
        self._all.requires_grad_(False)
        for module in self._stage.trained:
            module.requires_grad_(True)
        unique = {id(p): p for module in self._stage.trained for p in module.parameters()}
        self._parameters = list(unique.values())
        self._optimiser = _make_optimiser(self._stage.recipe, self._parameters)
        if self._position.step:
            if self._stage.helper is not None:
                self._stage.helper.load_state_dict(_part(tensors, "helper/"))
            self._best = _part(tensors, "best/")
            load_optimiser(self._optimiser, _part(tensors, "optimiser/"))

    def advance(self, saver: Saver, progress: Progress) -> None:
        """Do the steps that are left."""
        stage, recipe, position = self._stage, self._stage.recipe, self._position
        every = max(1, recipe.steps // _POINTS)
        sums: dict[str, float] = {}
        start, since = position.step, 0
        self._set_modes()
        if start == 0 and recipe.evaluations and self._judge is not None:
            self._select(self._judge)
        workers = _CPU_WORKERS if self._device.type == "cpu" else _GPU_WORKERS
        with closing(prefetch(self._draw, range(start, recipe.steps), workers=workers)) as batches:
            for step, arrays in enumerate(batches, start):
                losses = self._step(step, arrays)
                since += 1
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                position.step = step + 1
                if position.step % every == 0 or position.step == recipe.steps:
                    means = {name: value / since for name, value in sums.items()}
                    position.points.append(LossPoint(stage=stage.name, step=position.step, losses=means))
                    sums, since = {}, 0
                progress(f"{stage.name} | {_describe(losses)}", position.step, recipe.steps)
                if recipe.judged(step) and self._judge is not None and self._select(self._judge):
                    return
                # Only where no mean is half done, so that the log goes on as it would have.
                if not since and position.step < recipe.steps and saver.due():
                    saver.save(position, self._tensors())

    def finish(self) -> None:
        """Take the best state that was judged, where any was."""
        if self._best:
            self._network.load_state_dict(self._best)
            for place, one in enumerate(self._position.judgements):
                if (one.stage, one.step) == (self._stage.name, self._position.best_step):
                    self._position.judgements[place] = one.model_copy(update={"chosen": True})
        self._optimiser.zero_grad(set_to_none=True)

    def _draw(self, step: int) -> Batch:
        return self._stage.batch(np.random.default_rng((self._seed, self._number, step)))

    def _step(self, step: int, arrays: Batch) -> dict[str, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = self._stage.recipe.rate(step)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for name, a in arrays.items()}
        values, finite = self._gradients(step, tensors)
        if not finite and self._half:
            # What bfloat16 cannot hold, float32 can; from here on, so that no step after it is lost in the same way.
            self._half = False
            values, finite = self._gradients(step, tensors)
        if not finite:
            raise DataError(
                f"training broke down: {self._stage.name}, step {step + 1}, {_describe(values)}; lower learning_rate"
            )
        self._optimiser.step()
        return values

    def _gradients(self, step: int, tensors: Mapping[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Return the losses of a step, whose gradients are set, and whether these and the losses are finite."""
        torch.manual_seed(_step_seed(self._seed, self._number, step))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            losses = self._stage.losses(tensors)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        clip = self._stage.recipe.clip
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, math.inf if clip is None else clip)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        return values, all(math.isfinite(value) for value in (*values.values(), float(norm)))

    def _set_modes(self) -> None:
        self._all.eval()
        for module in self._stage.trained:
            module.train()

    def _select(self, judge: Judge) -> bool:
        """Judge the network, keep it if it is the best, and say whether to end here."""
        position = self._position
        self._network.eval()
        with torch.inference_mode():
            if self._stage.settle is not None:
                self._stage.settle()
            value = judge(self._network)
        self._set_modes()
        position.judgements.append(Judgement(stage=self._stage.name, step=position.step, value=value))
        if position.step == 0:
            # To compare with, not to keep: planted defects say too little to prefer a network that learned nothing.
            return False
        if position.best is None or value > position.best:
            position.best, position.best_step, position.stale = value, position.step, 0
            self._best = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}
            return False
        position.stale += 1
        return self._stage.recipe.patience is not None and position.stale >= self._stage.recipe.patience

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"network/{name}": value for name, value in self._network.state_dict().items()}
        if self._stage.helper is not None:
            found |= {f"helper/{name}": value for name, value in self._stage.helper.state_dict().items()}
        found |= {f"best/{name}": value for name, value in self._best.items()}
        return found | {f"optimiser/{name}": value for name, value in optimiser_tensors(self._optimiser).items()}


def run_key(content: Mapping[str, Any]) -> str:
    """Return a digest of what decides the outcome of a training."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def choose_device(device: Device) -> torch.device:
    """Return where to train; raises `ConfigError` where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda, but torch sees no NVIDIA GPU; use --set device=cpu or omit it")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _mixed(device: torch.device, recipe: Recipe) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without such instructions oneDNN computes bfloat16 in float32, and loses time and digits for nothing.
    return recipe.mixed and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state alone, and have a GPU add in the same order each time."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark, torch.are_deterministic_algorithms_enabled())
    with torch.random.fork_rng():
        try:
            if device.type == "cuda":
                cudnn.deterministic, cudnn.benchmark = True, False
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before[:2]
            torch.use_deterministic_algorithms(before[2])


def _make_optimiser(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=recipe.momentum, weight_decay=decay)
    kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=recipe.betas, weight_decay=decay)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _step_seed(seed: int, stage: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, stage, step)).generate_state(1)[0])


def _describe(losses: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    return f"loss {sum(losses.values()):.3g}" + (f" ({parts})" if len(losses) > 1 else "")
