"""python -m checkpoints_convert"""

import sys

from checkpoints_convert.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
