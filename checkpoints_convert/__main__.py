"""python -m checkpoints_convert"""

import os
import signal
import sys


def _leave(number, _):
    os._exit(128 + number)


if __name__ == "__main__":
    # Nothing is open yet and nothing written, so a signal ends the process at once; `main` changes that.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    from checkpoints_convert.command import main

    sys.exit(main(sys.argv[1:]))
