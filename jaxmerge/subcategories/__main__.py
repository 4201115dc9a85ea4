"""Makes subcategories: ``python -m jaxmerge.subcategories NAME --count 4 --features inception --data-dir DIR``."""

import argparse
import functools
import sys

from jaxmerge.data.subcategories import attribute, folder
from jaxmerge.subcategories import features, make


def main(arguments: list[str] | None = None) -> int:
    """Makes subcategories of one set and says how large they are; 0 when they are there, 2 with one sentence if not."""
    given = _parser().parse_args(arguments)
    try:
        kind = features.pixels
        if given.features == "inception":
            from jaxmerge import parallel  # imports JAX, which the pixels do not need

            parallel.use_all_cores()
            kind = functools.partial(features.inception, given.network)
        records = make(given.name, given.count, kind, seed=given.seed, data_dir=given.data_dir)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for record in records:
        count = record["count"]
        path = folder(given.name, given.data_dir) / f"{count}.npz"
        print(f"{attribute(count)} from the {record['split']} split: inertia {record['inertia']:.6g}, {path}")
        for split, sizes in record["sizes"].items():
            print(f"  {split}: {', '.join(map(str, sizes))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxmerge.subcategories",
        description="Divides a data set into subcategories by k-means on features of its training images.",
    )
    parser.add_argument("name", help="a data set that is prepared or comes with the package")
    parser.add_argument(
        "--count", type=int, nargs="+", required=True, help="numbers of subcategories, such as 2 4 8"
    )
    parser.add_argument(
        "--features",
        choices=("inception", "pixels"),
        default="inception",
        help="Inception's pool features, or mean colours of 8x8 cells, which need no network",
    )
    parser.add_argument(
        "--network",
        default="checkpoints/inception",
        help="the converted Inception network (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of k-means (default %(default)s)")
    parser.add_argument(
        "--data-dir", help="where prepared sets are; default JAXMERGE_DATA or ~/jaxmerge_data"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
