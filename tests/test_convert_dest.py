"""What the command replaces, what a stop leaves behind, and the files of reference statistics."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from checkpoints_convert import command, places
from jaxmerge import checkpoint, files
from jaxmerge.experts import io
from tests import conversion, hostile, public
from tests.conversion import PICKLE, metadata, run

# DEST


def test_an_existing_destination_is_kept_unless_overwriting(tmp_path, capsys):
    source, dest = public.FIXTURES / PICKLE, tmp_path / "out"
    dest.mkdir()
    (dest / "mine").write_text("")
    assert run(source, dest) == 1 and "already exists" in capsys.readouterr().err
    assert run(source, dest, "--overwrite") == 1 and "not a checkpoint" in capsys.readouterr().err
    assert os.listdir(dest) == ["mine"]
    (dest / "mine").unlink()
    dest.rmdir()
    checkpoint.save(dest, {"a": np.ones(2)}, {"old": True})
    assert run(source, dest, "--overwrite", "--no-check") == 0
    assert "old" not in metadata(dest) and io.load_expert(dest).shape == (8, 8, 3)


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "_replace", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    assert run(public.FIXTURES / PICKLE, tmp_path / "new" / "folders" / "out", "--no-check") == 130
    assert os.listdir(tmp_path) == [] and "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_checkpoint_grows_leaves_nothing(tmp_path, number):
    source = conversion.wide_checkpoint(tmp_path / "from")
    process = conversion.start(source, "new/out", "--no-check", cwd=tmp_path)
    staging = tmp_path / "new" / ".out.tmp" / "arrays"
    while process.poll() is None and not (staging.exists() and any(staging.iterdir())):
        time.sleep(0.001)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.strip() == "interrupted; nothing was written."
    time.sleep(0.5)
    assert os.listdir(tmp_path) == ["from"]


@pytest.mark.parametrize(
    "module", ["argparse", "checkpoints_convert.registry", "checkpoints_convert.arrival"]
)
def test_a_signal_during_imports_ends_quietly(tmp_path, module):
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('checkpoints_convert', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, public.FIXTURES / PICKLE, "out"],
        cwd=tmp_path,
        env=conversion.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130 and done.stderr.strip() in ("", "interrupted; nothing was written.")
    assert os.listdir(tmp_path) == []


def test_a_signal_after_the_writing_says_what_was_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "show_notes", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert run(public.FIXTURES / PICKLE, tmp_path / "out", "--no-check") == 130
    assert f"interrupted; {tmp_path / 'out'} was written." in capsys.readouterr().err
    assert run(public.FIXTURES / PICKLE, tmp_path / "out", "--no-check", "--overwrite") == 130
    assert "out was written." in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "_replace", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(public.FIXTURES / PICKLE, tmp_path / "out", "--no-check", "--overwrite") == 130
    assert "interrupted; nothing was written." in capsys.readouterr().err


def test_only_a_checkpoint_and_nothing_else_is_replaced(tmp_path, capsys):
    source, dest = public.FIXTURES / PICKLE, tmp_path / "out"
    checkpoint.save(dest, {"a": np.ones(2)}, {})
    (dest / "mine.txt").write_text("")
    package = tmp_path / "package"
    package.mkdir()
    (package / "metadata.json").write_text("{}")
    statistics = tmp_path / "my.npz"
    np.savez(statistics, a=np.ones(2))
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for place in (dest, package, statistics, notes, tmp_path / "dangling"):
        assert run(source, place, "--overwrite") == 1, place
        assert "is not replaced" in capsys.readouterr().err, place
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert {checkpoint.METADATA, checkpoint.INTEGRITY, checkpoint.ARRAYS} == places.CHECKPOINT


@pytest.mark.parametrize("place", ["inside a file", "closed", "long", "longer", "long parent"])
def test_a_bad_destination_is_refused_before_anything_is_fetched(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    dest, words = {
        "inside a file": ("file/a/b", "a file is where a folder is needed"),
        "closed": ("x/y", "no permission to use"),
        "long": ("a" * 250, "names of at most"),
        "longer": ("a" * 5000, "names of at most"),
        "long parent": (f"{'a' * 300}/b", "names of at most"),
    }[place]
    if place == "closed":  # to root nothing is closed
        monkeypatch.setattr(os, "access", lambda *_: False)
    assert run("edm-cifar10-32x32-uncond-vp", tmp_path / dest, "--cache", tmp_path / "cache") == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400
    assert os.listdir(tmp_path) == ["file"]


def test_a_list_that_nobody_reads_to_its_end_ends_quietly(tmp_path):
    process = conversion.start("--list", cwd=tmp_path)
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE and process.stderr.read() == ""
    process.stderr.close()


# FID references


def test_reference_statistics_are_checked_and_say_where_they_come_from(tmp_path, capsys):
    mu, half = np.arange(4.0), np.random.default_rng(0).normal(size=(4, 4))
    np.savez(tmp_path / "ref.npz", mu=mu, sigma=half @ half.T)
    assert run(tmp_path / "ref.npz", tmp_path / "out.npz") == 0
    written = files.read_npz(tmp_path / "out.npz")
    np.testing.assert_array_equal(written["mu"], mu)
    np.testing.assert_array_equal(written["sigma"], half @ half.T)
    assert "ref.npz" in str(written["source"])
    assert (
        run(tmp_path / "ref.npz", tmp_path / "folder") == 1 and "must end in .npz" in capsys.readouterr().err
    )


def test_only_reference_statistics_replace_reference_statistics(tmp_path, capsys):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "mine.npz", a=np.ones(2))
    checkpoint.save(tmp_path / "expert.npz", {"a": np.ones(2)}, {})
    for name in ("mine.npz", "expert.npz"):
        assert run(tmp_path / "ref.npz", tmp_path / name, "--overwrite") == 1
        assert "is not replaced" in capsys.readouterr().err
    np.testing.assert_array_equal(files.read_npz(tmp_path / "mine.npz")["a"], 1)
    np.savez(tmp_path / "old.npz", mu=np.ones(4), sigma=np.eye(4))
    assert run(tmp_path / "ref.npz", tmp_path / "old.npz", "--overwrite") == 0
    np.testing.assert_array_equal(files.read_npz(tmp_path / "old.npz")["mu"], 0)
    for options in (("--kind", "edm"), ("--weights", "ema"), ("--name", "vdm-cifar10")):
        assert run(tmp_path / "ref.npz", tmp_path / "new.npz", *options) == 1
        assert f"leave {options[0]} out" in capsys.readouterr().err


def test_devices_are_refused_at_once(tmp_path):
    # In a process with little memory and time: it must neither wait for a pipe nor read /dev/zero to its end.
    os.mkfifo(tmp_path / "pipe")
    program = (
        "import resource, signal, sys\n"
        "from checkpoints_convert import references, command\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))\n"
        "signal.alarm(20)\n"
        "assert [command.main([name, 'out']) for name in ('pipe', '/dev/zero', './pipe')] == [1, 1, 1]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=conversion.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr.count("got a device") == done.stderr.count("\n") == 3, (
        done.stderr
    )
    assert os.listdir(tmp_path) == ["pipe"]


def test_flipped_bytes_of_reference_statistics_end_in_one_sentence(tmp_path, capsys):
    np.savez_compressed(tmp_path / "ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    data = (tmp_path / "ref.npz").read_bytes()
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 0x14
        (tmp_path / "x.npz").write_bytes(changed)
        code, error = run("--inspect", tmp_path / "x.npz"), capsys.readouterr().err
        assert (code == 0 and not error) or (error.startswith("error: ") and error.count("\n") == 1), place


@pytest.mark.parametrize("fault", ["asymmetric", "infinite", "pickled", "shape", "cut"])
def test_damaged_reference_statistics_are_refused(fault, tmp_path, capsys):
    mu, sigma = np.zeros(4), np.eye(4)
    if fault == "asymmetric":
        sigma[0, 1] = 1
    if fault == "infinite":
        mu[0] = np.inf
    if fault == "pickled":
        mu = np.asarray([hostile.Gadget()] * 4, dtype=object)
    np.savez(tmp_path / "ref.npz", mu=mu[:3] if fault == "shape" else mu, sigma=sigma)
    if fault == "cut":
        (tmp_path / "ref.npz").write_bytes((tmp_path / "ref.npz").read_bytes()[:-30])
    assert run(tmp_path / "ref.npz", tmp_path / "a" / "out.npz") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["ref.npz"]
