"""Ctrl-C and SIGTERM during training: the step is finished and the state saved before the run ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and has saved its state.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class StopRequest:
    """The first Ctrl-C or SIGTERM: lets the step finish and the state be saved. A second one ends at once."""

    number: int | None = None

    def is_set(self) -> bool:
        return self.number is not None

    def __call__(self, number, frame):
        if self.is_set():
            raise Interrupted("stopped at once, without saving.", number)
        self.number = number


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
