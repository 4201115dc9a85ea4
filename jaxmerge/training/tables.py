"""A CSV file with one row per step that survives being killed."""

import csv
import os
import pathlib
from collections.abc import Mapping


class Table:
    """Rows keyed by a rising step; the first row's keys become the header.

    Args:
        path: the CSV file.
        last_step: rows up to this step are kept, later ones (written after the checkpoint that a run
            continues from) are dropped, because they are about to be written again.
    """

    def __init__(self, path: str | os.PathLike, *, last_step: int):
        self.path = pathlib.Path(path)
        kept = [row for row in read(self.path) if int(row["step"]) <= last_step]
        staging = self.path.with_name(self.path.name + ".tmp")
        if kept:
            self._write(staging, kept, "w", header=True)
            staging.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def append(self, rows: list[Mapping[str, object]]) -> None:
        """Adds rows at the end; floats are written so that they read back exactly."""
        if rows:
            self._write(self.path, rows, "a", header=not self.path.exists())

    @staticmethod
    def _write(path, rows, mode, *, header):
        with open(path, mode, newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            if header:
                writer.writeheader()
            writer.writerows(rows)


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """All complete rows; none if there is no file. A last line cut off by a kill is left out."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))
