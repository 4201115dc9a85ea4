"""Samples on disk: shards that continue after a kill, refuse others' folders, and can be exported."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmerge import shards
from jaxmerge.experts import io as experts_io
from jaxmerge.sampling import Settings, generate

LAYOUT = shards.Layout(count=23, size=10, shape=(2, 3, 1))
IDENTITY = {"model": "numbers", "seed": 0}


def numbers(first: int, count: int):
    """Images that tell their own number."""
    index = np.arange(first, first + count)
    images = (index[:, None, None, None] * 6 + np.arange(6).reshape(2, 3, 1)).astype(np.uint8)
    return images, np.full(count, 7.0)


def test_shards_hold_every_sample_once_and_in_order(tmp_path):
    done = []
    written = shards.write(tmp_path / "s", LAYOUT, IDENTITY, numbers, advance=done.append)
    assert [len(part) for part in written] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(list(written)), numbers(0, 23)[0])
    assert done == [0, 10, 10, 3]
    assert [written.record(i)["nfe"] for i in range(3)] == [7.0] * 3
    written.verify()
    np.testing.assert_array_equal(np.concatenate(list(shards.read(tmp_path / "s"))), numbers(0, 23)[0])


def test_a_stopped_run_computes_only_what_is_missing(tmp_path):
    calls = []

    def stops_at_the_third(first, count):
        calls.append(first)
        if first == 20:
            raise KeyboardInterrupt
        return numbers(first, count)

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, LAYOUT, IDENTITY, stops_at_the_third)
    with pytest.raises(ValueError, match="lacks 1 of 3 shards"):
        shards.read(tmp_path)
    # A file that was cut off, and one without its record, are no finished shards.
    whole = (tmp_path / LAYOUT.file(1)).read_bytes()
    (tmp_path / LAYOUT.file(1)).write_bytes(whole[:-1])
    done = []
    shards.write(
        tmp_path,
        LAYOUT,
        IDENTITY,
        lambda first, count: calls.append(first) or numbers(first, count),
        advance=done.append,
    )
    assert calls == [0, 10, 20, 10, 20] and done == [10, 10, 3]
    assert (tmp_path / LAYOUT.file(1)).read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("layout", "identity", "named"),
    [(LAYOUT._replace(size=5), IDENTITY, "size"), (LAYOUT, IDENTITY | {"seed": 1}, "identity")],
)
def test_a_folder_with_other_samples_is_refused_and_left_alone(tmp_path, layout, identity, named):
    shards.write(tmp_path, LAYOUT, IDENTITY, numbers)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"holds other samples than asked for .their {named} differ"):
        shards.write(tmp_path, layout, identity, numbers)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_changed_images_and_foreign_folders_are_named(tmp_path):
    written = shards.write(tmp_path, LAYOUT, IDENTITY, numbers)
    path = tmp_path / LAYOUT.file(2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} are not those that were written"):
        written.verify()
    (tmp_path / shards.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="should hold samples with a manifest"):
        shards.read(tmp_path)
    with pytest.raises(ValueError, match="count and shard size must be at least 1"):
        shards.write(tmp_path / "none", LAYOUT._replace(size=0), IDENTITY, numbers)


def test_exports_hold_the_images_that_other_tools_expect(tmp_path):
    from PIL import Image

    written = shards.write(tmp_path / "s", LAYOUT, IDENTITY, numbers)
    shards.export_npz(written, tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as stored:
        np.testing.assert_array_equal(stored["arr_0"], numbers(0, 23)[0])
    shards.export_png(written, tmp_path / "png", levels=256)
    files = sorted((tmp_path / "png").rglob("*.png"))
    assert len(files) == 23 and files[11].name == "img00000011.png"
    np.testing.assert_array_equal(np.asarray(Image.open(files[11])), numbers(11, 1)[0][0, :, :, 0])
    shards.export_png(written, tmp_path / "spread", levels=139)
    last = np.asarray(Image.open(sorted((tmp_path / "spread").rglob("*.png"))[22]))
    assert last[-1, -1] == round(137 * 255 / 138)


PROGRAM = """
import sys, jax
from jaxmerge import shards
from jaxmerge.experts.io import shipped
from jaxmerge.sampling import Settings, generate
expert, key = shipped("digits_vdm"), jax.random.key(3)
layout = shards.Layout(5000, 50, (8, 8, 1))
def make(first, count):
    return generate(expert, count, key=key, settings=Settings(steps=3), first=first, batch_size=50)
print("ready", flush=True)
shards.write(sys.argv[1], layout, {"model": "digits_vdm"}, make)
print("done", flush=True)
"""


SHARDS = 100


def shards_in(folder: Path) -> list[Path]:
    """The files with samples, in their order."""
    return sorted(folder.glob("shard-*.npy"))


def start(folder: Path) -> subprocess.Popen:
    """The program in a process of its own, at the point where it begins to write."""
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> None:
    """Waits for a program that nobody kills."""
    assert process.communicate()[0] == "done\n"
    assert process.returncode == 0


def kill(process: subprocess.Popen, folder: Path, *, count: int, delay: float) -> None:
    """Kills the program `delay` seconds after at least `count` shards are there, or when it is done."""
    while process.poll() is None and len(shards_in(folder)) < count:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    """5 000 samples, killed ten times and started again, against an undisturbed run.

    Each kill waits for a random number of new shards, so that it falls between the first and the last one on any
    machine, and for a random part of the time that a shard takes, so that it falls anywhere within one.
    """
    rng, calm, killed, within = np.random.default_rng(0), tmp_path / "calm", tmp_path / "killed", 0
    end(start(calm))
    written = [path.stat().st_mtime for path in shards_in(calm)]
    assert len(written) == SHARDS
    per_shard = (written[-1] - written[0]) / (SHARDS - 1)
    for left in range(10, 0, -1):
        present = len(shards_in(killed))
        count = present + int(rng.integers(1, max(2, 2 * (SHARDS - present) // (left + 2))))
        kill(start(killed), killed, count=count, delay=rng.uniform(0, per_shard))
        within += 0 < len(shards_in(killed)) < SHARDS
    assert within >= 7
    end(start(killed))
    shards.read(killed).verify()
    assert [p.name for p in shards_in(killed)] == [p.name for p in shards_in(calm)]
    for path in calm.iterdir():
        assert path.read_bytes() == (killed / path.name).read_bytes(), path.name


def test_another_batch_size_changes_hardly_a_pixel():
    expert, key = experts_io.shipped("digits_vdm"), jax.random.key(3)
    settings = Settings(steps=6)
    one, _ = generate(expert, 40, key=key, settings=settings, batch_size=40)
    parts = [
        generate(expert, 8, key=key, settings=settings, first=f, batch_size=4)[0] for f in range(0, 40, 8)
    ]
    other = np.concatenate(parts)
    assert np.mean(one == other) >= 0.999
    assert np.abs(one.astype(int) - other).max() <= 1


def test_a_manifest_is_json_that_names_the_identity(tmp_path):
    shards.write(tmp_path, LAYOUT, IDENTITY, numbers)
    stored = json.loads((tmp_path / shards.MANIFEST).read_text())
    assert stored == {"count": 23, "size": 10, "shape": [2, 3, 1], "identity": IDENTITY}
    assert io.BytesIO((tmp_path / LAYOUT.file(0)).read_bytes()).read(6) == b"\x93NUMPY"
