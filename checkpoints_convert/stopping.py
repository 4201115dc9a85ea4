"""Ctrl-C and SIGTERM: an orderly stop, whatever the program is doing."""

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any


def identity(path: str | None) -> tuple[int, int] | None:
    """What is at a path, so that something new there is known from what was there before."""
    try:
        found = os.lstat(os.path.expanduser(path or ""))
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM raise, so that half-written files are removed."""
    last = -1.0

    def stop(number, frame):
        nonlocal last
        now = time.monotonic()
        if last < 0 or now - last > 1:  # impatience must not stop the removal of what is half-written
            last = now
            raise Stopped(number)

    with _answered_by(stop):
        yield


def module(name: str) -> ModuleType:
    """A module of this package.

    Libraries may swallow what a signal raises while they are imported, and nothing is half-written then: so a
    signal ends the process at once.
    """

    def leave(number, frame):
        os.write(2, b"\ninterrupted; nothing was written.\n")
        os._exit(128 + number)

    with _answered_by(leave):
        return importlib.import_module(f"checkpoints_convert.{name}")


@contextlib.contextmanager
def _answered_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Sets the handler of Ctrl-C and SIGTERM, where it can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
