"""Runs one experiment:

    python main.py --config configs/digits_merge.py [--workdir DIR] [--config.key=value ...]

The config says what is done (`task`); `configs/default.py` explains every key. The workdir, by
default ``runs/<config name>``, holds the config, the results, the pictures and the report. The same
command given again continues an interrupted run and shows a finished one.
"""

import sys

from jaxmerge import app

if __name__ == "__main__":
    sys.exit(app.main(sys.argv))
