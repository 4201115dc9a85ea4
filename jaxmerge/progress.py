"""Progress with a rate and a remaining time: bars on a terminal, now and then a line elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.progress
from rich.console import Console

# Seconds between two lines where there is no terminal.
LINE_EVERY = 10.0


class Progress:
    """Shows tasks on one console; tasks may nest."""

    def __init__(self, console: Console):
        self._console = console
        self._bars: rich.progress.Progress | None = None

    @contextlib.contextmanager
    def task(self, total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
        """One task of `total` units; yields ``advance(n=1)``."""
        if not self._console.is_terminal:
            yield _Lines(self._console, total, what, unit)
            return
        outermost = self._bars is None
        if outermost:
            self._bars = _bars(self._console)
            self._bars.start()
        bar = self._bars.add_task(what, total=total, unit=unit, rate="")
        start = time.perf_counter()
        done = 0

        def advance(n: int = 1) -> None:
            nonlocal done
            done += n
            self._bars.update(bar, completed=done, rate=_rate(done, time.perf_counter() - start, unit))

        try:
            yield advance
            seconds = time.perf_counter() - start
            line = f"{what}: {done} {unit} in {seconds:.1f} s ({_rate(done, seconds, unit)})"
            self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)
        finally:
            self._bars.remove_task(bar)
            if outermost:
                self._bars.stop()
                self._bars = None


def on_stderr() -> Progress:
    """Progress of a command whose result is what it prints."""
    return Progress(Console(stderr=True))


class _Lines:
    """``advance`` for output that is not a terminal."""

    def __init__(self, console: Console, total: int, what: str, unit: str):
        self._console, self._total, self._what, self._unit = console, total, what, unit
        self._done = 0
        self._start = self._shown = time.perf_counter()

    def __call__(self, n: int = 1) -> None:
        self._done += n
        now = time.perf_counter()
        if self._done < self._total and now - self._shown < LINE_EVERY:
            return
        self._shown = now
        elapsed = now - self._start
        left = elapsed / max(self._done, 1) * max(self._total - self._done, 0)
        ending = f"{left:.0f} s left" if self._done < self._total else f"done in {elapsed:.1f} s"
        rate = _rate(self._done, elapsed, self._unit)
        line = f"{self._what}: {self._done}/{self._total} {self._unit}, {rate}, {ending}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _bars(console: Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _rate(done: int, seconds: float, unit: str) -> str:
    return f"{done / max(seconds, 1e-9):.3g} {unit}/s"
