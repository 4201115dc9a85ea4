"""Prepares a data set: ``python -m jaxmerge.data NAME --data-dir DIR``."""

import argparse
import sys

from jaxmerge.data import EMBEDDED, PREPARED, check_name, stored


def main(arguments: list[str] | None = None) -> int:
    """Prepares one set and says what it holds; 0 when it is ready, 2 with one sentence when it is not."""
    parser = argparse.ArgumentParser(prog="python -m jaxmerge.data", description="Prepares a data set.")
    parser.add_argument("name", help=f"{', '.join(PREPARED)}, folder:/path or folder:/path@SIZE")
    parser.add_argument(
        "--data-dir", help="archives and prepared sets; default JAXMERGE_DATA or ~/jaxmerge_data"
    )
    parser.add_argument("--no-download", action="store_true", help="only use files that are there")
    given = parser.parse_args(arguments)
    try:
        check_name(given.name)
        if given.name in EMBEDDED:
            print(f"{given.name} comes with installed packages; there is nothing to prepare.")
            return 0
        record = stored.prepare(given.name, given.data_dir, download=not given.no_download)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for split, facts in record["splits"].items():
        print(f"{given.name} {split}: {facts['images']} images, SHA-256 {facts['sha256']}")
    for what, value in record["notes"].items():
        print(f"{what}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
