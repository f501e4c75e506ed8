"""``edgead tune``: every combination that opens on this device, tried alone, timed in turns, judged, and one chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import REGISTRY, available
from edgead.runtime.backends.native.library import find_library
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.references import expected_inferences
from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.device.bench import DEFAULT_FRAME_SIZE, check_frames, frame_pool, take_turns
from edgead.runtime.device.board_status import describe_board
from edgead.runtime.device.tuning.evaluation import Judgement, Picture, Trial, judge
from edgead.runtime.device.tuning.pareto import complain, mark, pick
from edgead.runtime.device.tuning.report import BundleFacts, Candidate, TuneReport
from edgead.runtime.device.tuning.search_space import Setup, find_like, find_setups
from edgead.runtime.errors import BackendError, BundleError, ConfigError, DataError
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.inspection.device_profile import Choice
from edgead.runtime.isolation import ask
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import Progress
from edgead.runtime.scratch import private_directory
from edgead.runtime.status.latency import Latency

DEFAULT_FRAMES = 100

_WORKER = "edgead.runtime.device.tuning.worker"
_TIMEOUT_S = 300.0
_TRIED_FRAMES = 2  # at camera size, in the file that the workers share
# Frames until the next one's turn: short, so that a busy moment of the machine meets all alike; not one by one, since
# each would then find the processor's cache full of another's weights, which no camera loop does.
_TURN = 5
_MEMORY_SHARE = 0.5  # of what is free, for the combinations that take turns


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """What is asked of `tune`.

    Attributes:
        budget_ms: most milliseconds (median) from camera to decision; budget_mb: most memory in 10^6 bytes.
        backends, precisions, threads: as in `find_setups`.
        like: only this combination is tried, with each of the bundles. keep: of these, as in `pick`.
        frames: counted frames of each. frame_size: ``(width, height)`` of the camera in pixels; a bundle that judges a
            region of frames of one size has that one, whatever is asked for.
    """

    budget_ms: float | None = None
    budget_mb: float | None = None
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    threads: Sequence[int] = ()
    like: Choice | None = None
    keep: int | None = None
    frames: int = DEFAULT_FRAMES
    frame_size: tuple[int, int] = DEFAULT_FRAME_SIZE

    def check(self) -> None:
        """Raise `ConfigError` where a budget or what is measured is out of range."""
        for name, value in (("--budget-ms", self.budget_ms), ("--budget-mb", self.budget_mb)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a number above 0, got {value}")
        check_frames(self.frames, self.frame_size)


def tune(
    paths: Sequence[str | Path],
    options: TuneOptions | None = None,
    *,
    pictures: Iterable[Picture] = (),
    progress: Progress = lambda _stage, _done, _total: None,
) -> TuneReport:
    """Choose what runs a bundle on this device, or which of several bundles, and how.

    Every combination of backend, precision, threads and native code that opens here is tried in a process of its own,
    which gives the memory that it takes; a library that crashes is omitted. There it replays the references as
    ``edgead check`` does and judges the pictures: what fails the check, or decides a picture otherwise than FP32 does,
    must not be used. The others take turns in one process on frames of camera size.

    Args:
        paths: ``.edgead`` files; several, exported with other settings from the same images, need good and planted
            pictures to be compared by.
        pictures: gone through once.
        progress: called with ``(stage, done, total)``.

    Raises:
        BundleError: damaged, unsafe, or without references.
        ConfigError: a number out of range, an unknown name, bundles that cannot be compared.
        DataError: a picture that cannot be judged.
        BackendUnavailable, BackendError: nothing can run the bundle.
    """
    options = options or TuneOptions()
    options.check()
    if not paths:
        raise ConfigError("there is no bundle to tune; give one that 'edgead export' wrote")
    with ExitStack() as stack:
        folder = stack.enter_context(private_directory())
        bundles = [stack.enter_context(Bundle.open(path)) for path in dict.fromkeys(map(Path, paths))]
        options = replace(options, frame_size=_frame_size(bundles, options.frame_size))
        images = [_reference_images(bundle) for bundle in bundles]
        shown, files = _prepare(bundles, pictures, folder)
        if len(bundles) > 1 and not any(picture.kind == "planted" for picture in shown):
            raise ConfigError(
                "several bundles are compared by defects planted on good parts that none of them has seen; "
                "give a folder of those with --normals DIR"
            )
        np.save(folder / "frames.npy", np.stack(frame_pool(images[0], options.frame_size)[:_TRIED_FRAMES]))
        trials, skipped = _try_all(_find_all(bundles, options), folder / "frames.npy", files, progress)
        if options.budget_mb is not None and any(trial.peak_bytes is None for _, trial in trials):
            raise ConfigError("this system does not tell how much memory a process takes; omit --budget-mb")
        found = [
            Candidate(trial.setup, index, trial, judgement)
            for index, trial, judgement in _judge_all(trials, bundles, shown)
        ]
        before = describe_board()
        candidates = mark(_time(found, images[0], options, progress), options.budget_ms, options.budget_mb)
        choice = pick(candidates, options.keep)
        problem = None
        if choice is None:
            problem = complain(candidates, options.budget_ms, options.budget_mb, _mend(bundles))
        return TuneReport(
            bundles=tuple(_facts(bundle) for bundle in bundles),
            budget_ms=options.budget_ms,
            budget_mb=options.budget_mb,
            frame_size=options.frame_size,
            frames=options.frames,
            pictures={
                "references": len(images[0]),
                **{kind: sum(one.kind == kind for one in shown) for kind in ("good", "planted", "other")},
            },
            machine=describe_machine(),
            board={"before": before, "after": describe_board()},
            candidates=candidates,
            skipped=skipped,
            choice=choice,
            problem=problem,
        )


def _find_all(bundles: Sequence[Bundle], options: TuneOptions) -> list[tuple[int, Setup]]:
    def found(bundle: Bundle) -> list[Setup]:
        if options.like:
            return find_like(bundle, options.like)
        return find_setups(bundle, options.backends, options.precisions, options.threads)

    return [(index, setup) for index, bundle in enumerate(bundles) for setup in found(bundle)]


def _frame_size(bundles: Sequence[Bundle], asked: tuple[int, int]) -> tuple[int, int]:
    if len({bundle.manifest.input.bits for bundle in bundles}) > 1:
        raise ConfigError("these bundles take different bits of 16-bit image files; tune them one at a time")
    sizes = {bundle.view().frame_size or asked for bundle in bundles}
    if len(sizes) > 1:
        raise ConfigError("these bundles judge frames of different sizes; tune them one at a time")
    return sizes.pop()


def _reference_images(bundle: Bundle) -> list[NDArray[np.uint8]]:
    images = [decode_image(png, name) for name, png in bundle.references()]
    if not images:
        raise BundleError(f"{bundle.path} holds no reference images to make frames of; export it again")
    return images


def _prepare(bundles: Sequence[Bundle], pictures: Iterable[Picture], folder: Path) -> tuple[list[Picture], list[Path]]:
    """Write the pictures as each bundle's network takes them; return them without pixels, and the files."""
    shown: list[Picture] = []
    stacks: list[list[NDArray[np.uint8]]] = [[] for _ in bundles]
    views = [bundle.view() for bundle in bundles]
    nothing = np.empty((0, 0, 3), np.uint8)
    for picture in pictures:
        for view, stack in zip(views, stacks, strict=True):
            try:
                stack.append(view.prepare(picture.image))
            except DataError as error:
                raise DataError(f"{picture.name}: {error}") from error
        shown.append(replace(picture, image=nothing))
    names = [picture.name for picture in shown]
    if len(set(names)) < len(names):
        raise DataError(f"{next(name for name in names if names.count(name) > 1)} is given twice; give it once")
    files = [folder / f"pictures-{index}.npy" for index in range(len(bundles))]
    for file, stack in zip(files, stacks, strict=True):
        np.save(file, np.stack(stack) if stack else np.empty((0, 1, 1, 3), np.uint8))
    return shown, files


def _try_all(
    setups: Sequence[tuple[int, Setup]], frames: Path, pictures: Sequence[Path], progress: Progress
) -> tuple[list[tuple[int, Trial]], dict[str, str]]:
    trials: list[tuple[int, Trial]] = []
    skipped: dict[str, str] = {}
    several = len(pictures) > 1
    for done, (index, setup) in enumerate(setups):
        progress("combinations", done, len(setups))
        request = {
            "bundle": str(setup.bundle),
            "choice": setup.choice.model_dump(),
            "frames": str(frames),
            "pictures": str(pictures[index]),
        }
        name = f"{setup.bundle}: {setup.name}" if several else setup.name
        try:
            answer = ask(
                _WORKER,
                request,
                who=setup.choice.backend,
                doing=f"trying {setup.name}",
                timeout_s=_TIMEOUT_S,
                more_time="omit it with --backend, --precision or --threads",
            )
        except (BackendError, ConfigError) as error:
            skipped[name] = str(error)
        else:
            trials.append((index, Trial.parse(setup, answer)))
    progress("combinations", len(setups), len(setups))
    if not trials:
        raise BackendError(f"nothing can run {setups[0][1].bundle} here: {next(iter(skipped.values()))}")
    return trials, skipped


def _judge_all(
    trials: Sequence[tuple[int, Trial]], bundles: Sequence[Bundle], pictures: Sequence[Picture]
) -> Iterator[tuple[int, Trial, Judgement]]:
    for index, bundle in enumerate(bundles):
        expected = _expected(bundle)
        own = [trial for where, trial in trials if where == index]
        baseline = next((trial for trial in own if trial.setup.exact and not trial.problems), None)
        for trial in own:
            yield index, trial, judge(trial, baseline, expected, pictures)


def _expected(bundle: Bundle) -> Mapping[str, Verdict]:
    limits = bundle.manifest.limits()
    return {name: limits.judge(one, 0) for name, one in expected_inferences(bundle.expected()).items()}


class _Turn(NamedTuple):
    latency: Latency
    group: int


def _time(
    candidates: Sequence[Candidate],
    images: Sequence[NDArray[np.uint8]],
    options: TuneOptions,
    progress: Progress,
) -> list[Candidate]:
    """Take the times of all that may be used, near rivals in one group where memory does not hold all at once."""
    timed = [index for index, one in enumerate(candidates) if one.judgement.excluded is None]
    timed.sort(key=lambda index: candidates[index].trial.frame_ms)
    groups = _groups([(index, candidates[index].trial.peak_bytes or 0) for index in timed])
    turns: dict[int, _Turn] = {}
    total = options.frames * len(timed)
    for number, group in enumerate(groups):
        begun = options.frames * len(turns)
        with ExitStack() as stack:
            inspectors = [stack.enter_context(candidates[index].setup.open()) for index in group]
            found = take_turns(
                inspectors,
                images,
                frames=options.frames,
                turn=_TURN,
                frame_size=options.frame_size,
                progress=lambda done, _, begun=begun: progress("frames", begun + done, total),  # type: ignore[misc]
            )
        turns |= {index: _Turn(latency, number) for index, latency in zip(group, found, strict=True)}
    return [
        replace(one, latency=turns[index].latency, group=turns[index].group) if index in turns else one
        for index, one in enumerate(candidates)
    ]


def _groups(costs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Cut ``(index, bytes)`` into runs that fit into their share of the free memory, at least two where there are."""
    free = _free_bytes()
    room = math.inf if free is None else free * _MEMORY_SHARE
    groups: list[list[int]] = []
    used = math.inf
    for index, cost in costs:
        if used + cost > room and (not groups or len(groups[-1]) > 1):
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += cost
    return groups


def _free_bytes() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) << 10 if match else None


def _facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        path=str(bundle.path),
        name=manifest.name,
        sha256=bundle.sha256,
        height=manifest.input.height,
        width=manifest.input.width,
        detector=manifest.detector.model_dump(mode="json"),
        size=bundle.path.stat().st_size,
    )


def _mend(bundles: Sequence[Bundle]) -> str:
    """Return what to do about a budget that nothing keeps within, what takes least trouble first."""
    first = bundles[0]
    if any(map(first.native_kinds, first.manifest.precisions)) and find_library() is None:
        return f"compile the native code (edgead build {first.path} --target cpu) and tune again"
    if not any(key.startswith("int8") for key in first.manifest.precisions):
        return "export with --int8 and tune again, or fit with a smaller --size or with --budget-ms"
    if "openvino" not in available() and REGISTRY["openvino"].problem:
        return f"try another backend ({REGISTRY['openvino'].problem}), or fit with a smaller --size or --budget-ms"
    return "fit with a smaller --size, or with --budget-ms and --budget-mb"
