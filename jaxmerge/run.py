"""A run's folder: what was asked, what was computed, and the right to write there.

    config.json       the config, its name and command, versions, device, seed, revision
    stages/           one file per finished part; a run that was stopped continues after the last one
    results.json      the finished run's results, written last; with results.csv and report.html
    pictures/, log.txt

Every file appears whole or not at all: it is written beside its place and then renamed.
"""

import contextlib
import csv
import functools
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxmerge.files import flat_arrays, make_folder, nest, plain, read_json, read_npz, write_bytes, write_npz
from jaxmerge.progress import Progress

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not noticed there.
    fcntl = None

# What a stage's file says of itself: how long it took, and the revision of the code that made it.
SECONDS, REVISION = "__seconds__", "__revision__"
# What every run writes before it computes anything.
RECORDS = ("config.json", "log.txt", ".lock")


class Run:
    """An open workdir; a context manager.

    Args:
        workdir: the folder, created if needed.
        config: the config as plain nested dictionaries.
        name: the config's name.
        command: the command line that started the run.
        environment: versions, devices and revision; called only where something is computed.

    Raises:
        ValueError: the folder holds another config's run, or another process works in it.
        OSError: no permission or no space.

    Example:
        >>> with Run("runs/example", {"seed": 0}) as run:
        ...     run.stage("square", lambda: {"x": np.arange(3) ** 2})["x"]
        array([0, 1, 4])
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: dict[str, Any],
        *,
        name: str = "run",
        command: str = "",
        environment: Callable[[], dict[str, Any]] = dict,
    ):
        self.workdir = Path(workdir)
        self.config = json.loads(json.dumps(config))
        self.name, self.command = name, command
        self._console = console()
        self._progress = Progress(self._console)
        self._timings: dict[str, float] = {}
        self._revisions: dict[str, str | None] = {}
        self._describe = environment
        self._lock = None
        self._refuse_other_config()
        make_folder(self.workdir / "stages")
        self._take_lock()
        try:
            for left_over in (*self.workdir.glob("*.tmp"), *self.workdir.glob("*/*.tmp")):
                left_over.unlink(missing_ok=True)
            record = {"name": name, "command": command, "config": self.config}
            self._fresh = not self.path("config.json").exists()
            if self._fresh:
                record["environment"] = self._now
                self.write_json("config.json", record)
            self.environment = read_json(self.path("config.json")).get("environment", {})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, *_) -> None:
        # A config that was refused before anything was computed leaves no trace of itself.
        if kind is not None and issubclass(kind, ValueError) and self._fresh and self._is_empty():
            self.path("stages").rmdir()
            for name in RECORDS:
                self.path(name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.workdir.rmdir()
        self.close()

    def _is_empty(self) -> bool:
        """Whether the folder holds nothing but the run's own records."""
        names = {path.name for path in self.workdir.iterdir()}
        return names <= {*RECORDS, "stages"} and not any(self.path("stages").iterdir())

    def close(self) -> None:
        """Gives the folder back; nothing is written afterwards."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def path(self, *parts: str) -> Path:
        """A path inside the workdir."""
        return self.workdir.joinpath(*parts)

    @functools.cached_property
    def _now(self) -> dict[str, Any]:
        """This process's environment."""
        return self._describe()

    @property
    def provenance(self) -> dict[str, Any]:
        """The environment in which the run started.

        Where later revisions of the code made a part, "revisions" has the stages of each, and "report_revision" the
        one that wrote the report.
        """
        first, last = self.environment.get("revision"), self._now.get("revision")
        stages: dict[str, list[str]] = {}
        for name, revision in self._revisions.items():
            stages.setdefault(str(revision or first), []).append(name)
        if {*stages, str(last)} == {str(first)}:
            return self.environment
        return self.environment | {"revisions": stages, "report_revision": last}

    @property
    def timings(self) -> dict[str, float]:
        """Wall time in seconds of every stage, also of those computed before a restart."""
        return dict(self._timings)

    @property
    def results(self) -> dict[str, Any] | None:
        """The finished run's results, None before it is finished."""
        try:
            return read_json(self.path("results.json"))
        except (FileNotFoundError, ValueError):
            return None

    def log(self, message: str) -> None:
        """One line on the terminal and in log.txt."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
        with self.path("log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def stage(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `compute` returns, computed once per workdir.

        Args:
            name: letters, digits and ``_.=+-``; the file's name.
            compute: returns arrays, numbers and strings by name; dictionaries may nest.

        Returns:
            The same structure with numpy arrays and Python scalars, read from the file or computed
            now; both ways give the same values.
        """
        assert re.fullmatch(r"[\w.=+-]+", name), name
        path = self.path("stages", f"{name}.npz")
        if path.exists():
            try:
                arrays = read_npz(path)
                self._timings[name] = float(arrays.pop(SECONDS))
                self._revisions[name] = str(arrays.pop(REVISION)) if REVISION in arrays else None
                return nest(arrays)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self.log(
                    f"stage {name}: its file is damaged ({type(error).__name__}), so it is computed again"
                )
        start = time.perf_counter()
        arrays = flat_arrays(compute())
        self._timings[name] = time.perf_counter() - start
        self._revisions[name] = self._now.get("revision")
        said = {SECONDS: np.float64(self._timings[name])}
        if self._revisions[name] is not None:
            said[REVISION] = np.str_(self._revisions[name])
        write_npz(path, arrays | said)
        return nest(arrays)

    def forget(self, prefix: str) -> None:
        """Removes finished stages that a later one has taken up, by the beginning of their names."""
        for path in self.path("stages").glob(f"{prefix}*.npz"):
            path.unlink()
            self._timings.pop(path.stem, None)
            self._revisions.pop(path.stem, None)

    @contextlib.contextmanager
    def progress(self, total: int, what: str, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows progress with its rate and remaining time; yields ``advance(n=1)``."""
        with self._progress.task(total, what, unit) as advance:
            yield advance

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file whole or not at all; a NaN becomes null."""
        write_bytes(self.path(name), (json.dumps(plain(value), indent=1) + "\n").encode())

    def write_csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes rows with the union of their keys as header."""
        fields = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain(rows))
        write_bytes(self.path(name), text.getvalue().encode())

    def finish(self, results: dict[str, Any], pictures: dict[str, np.ndarray] | None = None) -> None:
        """Writes pictures, report.html, results.csv and, last, results.json.

        Args:
            results: see `jaxmerge.report.page`; config, environment and timings are added.
            pictures: arrays for the report, also named there.
        """
        from jaxmerge.report import page, style  # matplotlib takes a second; a run needs it only here

        results = plain(
            {"name": self.name, "command": self.command, "environment": self.provenance}
            | {"timings": self.timings, "config": self.config}
            | results
        )
        results.setdefault("finding", page.finding(results))
        if pictures:
            write_npz(self.path("pictures", "pictures.npz"), pictures)
        drawn = page.figures(results, pictures or {})
        for name, figure in drawn.items():
            write_bytes(self.path("pictures", f"{name}.png"), style.png(figure))
        self.write_csv("results.csv", results.get("rows", []))
        write_bytes(self.path("report.html"), page.page(results, drawn).encode())
        self.write_json("results.json", results)

    def show(self) -> None:
        """Prints the finished run's table, its finding and where its report is."""
        from jaxmerge.report import tables

        results = self.results
        tables.print_summary(results, self._console)
        self._console.print(
            f"report: {self.path('report.html')}", highlight=False, markup=False, soft_wrap=True
        )

    def _refuse_other_config(self) -> None:
        path = self.path("config.json")
        if not path.exists():
            return
        try:
            stored = read_json(path)["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged, so it cannot be told whose run {self.workdir} holds; remove the folder "
                "or choose another one with --workdir."
            ) from error
        if stored != self.config:
            raise ValueError(
                f"{self.workdir} holds the run of another config ({difference(stored, self.config)}); choose "
                "another folder with --workdir or remove this one."
            )

    def _take_lock(self) -> None:
        # A lock of the operating system ends with its process, however that ends: none goes stale.
        path = self.path(".lock")
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(self._lock, 20).decode(errors="replace").strip()
            self.close()
            raise ValueError(
                f"another run (process {owner or 'unknown'}) is writing to {self.workdir}; wait for it, stop it, "
                "or choose another folder with --workdir."
            ) from error
        except OSError:
            return  # a file system without locks
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"{os.getpid()}\n".encode())


def difference(stored: Any, asked: Any, prefix: str = "") -> str:
    """The first key in which two configs differ, in words."""
    for key in sorted(stored.keys() | asked.keys()):
        there, here = stored.get(key), asked.get(key)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            return difference(there, here, f"{prefix}{key}.")
        return f"its {prefix}{key} is {there!r}, this one's {here!r}"
    return "they differ"


def console() -> Console:
    """The terminal; wide enough for the tables where the output goes to a file."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=150)
