"""Samples on disk: shards that continue after a kill, refuse others' folders, and can be exported."""

import io
import json
import signal
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
import sys, numpy as np, jax, time
from jaxmerge import shards
from jaxmerge.experts.io import shipped
from jaxmerge.sampling import Settings, generate
expert, key = shipped("digits_vdm"), jax.random.key(3)
layout = shards.Layout(2000, 100, (8, 8, 1))
def make(first, count):
    return generate(expert, count, key=key, settings=Settings(steps=3), first=first, batch_size=50)
print("ready", flush=True)
shards.write(sys.argv[1], layout, {"model": "digits_vdm"}, make)
print("done", flush=True)
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    """2 000 samples, killed ten times and started again, against an undisturbed run in this process."""
    rng, kills = np.random.default_rng(0), 0
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed")]
    while kills < 10:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 4.0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            kills += 1
    end = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert end.stdout == "ready\ndone\n", end.stderr
    killed = shards.read(tmp_path / "killed")
    killed.verify()
    calm = tmp_path / "calm"
    end = subprocess.run(
        [*command[:-1], str(calm)], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert end.returncode == 0, end.stderr
    for name in sorted(p.name for p in calm.iterdir()):
        assert (calm / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


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
