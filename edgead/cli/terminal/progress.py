"""How far a long job is, for people: bars and the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

Step = Callable[[str, int, int], None]

_ROOMY = 76  # columns from which on there is room for a bar
_BESIDE = 54  # columns that bar, counts and times take beside the name of a stage
_BESIDE_NARROW = 24  # counts and time left
_MOST_BARS = 8

_LOG_EVERY_S = 60.0  # between two lines of a log
_DUMB_EVERY_S = 10.0  # the same on a terminal that cannot draw over a line, where somebody waits


class Pace:
    """How fast a stage goes, from its first step to its newest: some steps take hours, and no window fits all.

    Args:
        now: when the first step was told, in seconds; done: where it stood: what goes on where it stopped begins late.
    """

    def __init__(self, now: float, done: int) -> None:
        self._begun = self._newest = (now, done)

    def told(self, now: float, done: int) -> bool:
        """Take down a step; returns False where the stage begins again."""
        if done < self._newest[1]:
            self._begun = self._newest = (now, done)
            return False
        if done > self._newest[1]:
            self._newest = (now, done)
        return True

    def left_s(self, now: float, total: int) -> float | None:
        """Return the seconds left, None while nobody can know."""
        (began, first), (at, done) = self._begun, self._newest
        if total <= done:
            return 0.0
        if done <= first:
            return None
        return max(0.0, (at - began) / (done - first) * (total - done) - (now - at))


def clock_text(seconds: float | None) -> str:
    """Return ``1:02:03`` or ``0:12``; ``-:--`` for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def bars(console: Console) -> Iterator[Step]:
    """Yield ``step(stage, done, total)``, which draws a bar a stage; a total of 0 is one that nobody knows."""
    counts = MofNCompleteColumn(table_column=Column(no_wrap=True))
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), counts, _Left()]
    room = console.width - _BESIDE_NARROW
    if console.width >= _ROOMY:
        columns = [columns[0], BarColumn(max(10, min(40, console.width // 4))), counts, _Took(), _Left()]
        room = console.width - _BESIDE
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as drawn:
        shown: dict[str, tuple[TaskID, Pace]] = {}

        def step(stage: str, done: int, total: int) -> None:
            name, now = _name(stage), time.monotonic()
            label = stage if len(stage) <= room else stage[: max(room - 1, 1)] + "…"
            if name not in shown:
                pace = Pace(now, done)
                shown[name] = drawn.add_task(label, total=total or None, completed=done, pace=pace), pace
                _hide_old(drawn)
                return
            bar, pace = shown[name]
            if pace.told(now, done):
                drawn.update(bar, description=label, completed=done, total=total or None)
                return
            # The same stage of the next fit or fold: it would keep the time of the one before.
            drawn.reset(bar, total=total or None, completed=done, description=label, visible=True, pace=pace)
            _hide_old(drawn)

        yield step


@contextmanager
def lines(say: Callable[[str], None], *, dumb: bool, clock: Callable[[], float] = time.monotonic) -> Iterator[Step]:
    """Yield ``step(stage, done, total)``, which says from time to time how far a job is: a log has no bars."""
    every = _DUMB_EVERY_S if dumb else _LOG_EVERY_S
    paces: dict[str, Pace] = {}
    said = clock()

    def step(stage: str, done: int, total: int) -> None:
        nonlocal said
        now = clock()
        pace = paces.setdefault(_name(stage), Pace(now, done))
        pace.told(now, done)
        if now - said < every or done >= total > 0:
            return
        said = now
        left = pace.left_s(now, total) if total else None
        say(f"Still at {stage}: {done}{f' of {total}' if total else ''}" + _left_text(left))

    yield step


def _left_text(left: float | None) -> str:
    return "" if left is None else f", about {clock_text(left)} left"


def _name(stage: str) -> str:
    return stage.partition(" | ")[0]  # what follows, such as a loss, changes from step to step


class _Took(ProgressColumn):
    """The time since a stage began."""

    def render(self, task: Task) -> Text:
        return Text(clock_text(task.finished_time if task.finished else task.elapsed), "progress.elapsed", no_wrap=True)


class _Left(ProgressColumn):
    """The time left of a stage."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = None if task.total is None else task.fields["pace"].left_s(time.monotonic(), int(task.total))
        return Text(f"{clock_text(left)} left", "progress.remaining", no_wrap=True)


def _hide_old(drawn: Progress) -> None:
    """Keep as many bars as fit: the lower ones, which are at work, would be cut."""
    most = max(1, min(_MOST_BARS, drawn.console.height - 2))
    visible = [task for task in drawn.tasks if task.visible]
    finished = [task for task in visible if task.finished]
    for task in finished[: max(0, len(visible) - most)]:
        drawn.update(task.id, visible=False)
