"""Checkpoints: exact, atomic, and clear about what is wrong."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxmerge import checkpoint


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.layers = nnx.List(
            [nnx.Conv(1, width, (3, 3), rngs=rngs), nnx.GroupNorm(width, num_groups=2, rngs=rngs)]
        )


@functools.cache
def make_state(width=4):
    net = Net(width, rngs=nnx.Rngs(0))
    return {
        "net": net,
        "opt": optax.adamw(1e-3).init(net),
        "step": jnp.int32(7),
        "half": jnp.ones(3, jnp.bfloat16),
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "expert"
    checkpoint.save(path, make_state(), {"kind": "test", "levels": 17})
    return path


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.dtype(x.dtype) == np.dtype(y.dtype)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_modules_optimizer_states_and_small_dtypes_come_back_bit_for_bit(saved):
    loaded = checkpoint.load(saved, jax.eval_shape(make_state))
    assert_equal_trees(loaded, make_state())
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_relative_paths_work(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert checkpoint.exists("expert")
    assert_equal_trees(checkpoint.load("expert", make_state()), make_state())


def test_metadata_is_plain_json_beside_the_arrays(saved):
    assert json.loads((saved / "metadata.json").read_text()) == {"kind": "test", "levels": 17}
    assert checkpoint.load_metadata(saved) == {"kind": "test", "levels": 17}


def test_no_dotfiles_inside_so_that_a_wheel_can_carry_it(saved):
    assert not [p for p in saved.rglob("*") if p.name.startswith(".")]


def test_loading_writes_nothing_so_that_a_read_only_checkpoint_will_do(saved):
    # Permissions do not stop root; a folder's time changes with every file that comes or goes, for anybody.
    places = [saved, *saved.rglob("*")]
    for place in places:
        os.utime(place, ns=(10**18, 10**18))
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        assert_equal_trees(checkpoint.load(saved, make_state()), make_state())
        assert [saved, *saved.rglob("*")] == places
        assert {place.stat().st_mtime_ns for place in places} == {10**18}
    finally:
        for place in places:
            place.chmod(0o755)


def test_existing_checkpoint_is_kept_unless_overwriting(saved):
    with pytest.raises(ValueError, match="already exists"):
        checkpoint.save(saved, {"a": np.ones(2)}, {})
    checkpoint.save(saved, {"a": np.ones(2)}, {"new": True}, overwrite=True)
    assert checkpoint.load_metadata(saved) == {"new": True}
    assert os.listdir(saved.parent) == ["expert"]


def test_failed_overwrite_leaves_the_old_checkpoint(saved, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fingerprints", full)
    with pytest.raises(OSError, match=r"No space left on device.*expert"):
        checkpoint.save(saved, {"a": np.ones(2)}, {}, overwrite=True)
    assert_equal_trees(checkpoint.load(saved, make_state()), make_state())
    assert os.listdir(saved.parent) == ["expert"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_orbax_s_threads_have_written(tmp_path, monkeypatch, number):
    class Stopped(BaseException):
        pass

    class Slow:
        """Writes, is interrupted, and its threads write again."""

        class Context(contextlib.nullcontext):
            memory = types.SimpleNamespace()

        @staticmethod
        def save(folder, _):
            folder.mkdir()
            os.kill(os.getpid(), number)
            (folder / "late").write_text("")
            order.append("written")

    def stop(*_):
        order.append("stopped")
        raise Stopped

    order: list[str] = []
    monkeypatch.setattr(checkpoint, "_orbax", lambda: Slow)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            checkpoint.save(tmp_path / "a", {"w": np.ones(2)}, {})
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert order == ["written", "stopped"] and os.listdir(tmp_path) == []


def test_a_link_to_a_checkpoint_is_replaced_and_not_what_it_leads_to(saved):
    link = saved.parent / "link"
    link.symlink_to(saved, target_is_directory=True)
    checkpoint.save(link, {"a": np.ones(2)}, {"new": True}, overwrite=True)
    assert sorted(os.listdir(saved.parent)) == ["expert", "link"] and not link.is_symlink()
    assert checkpoint.load_metadata(link) == {"new": True}
    assert_equal_trees(checkpoint.load(saved, make_state()), make_state())


def test_what_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="is not a checkpoint, so it is not replaced"):
            checkpoint.save(tmp_path / name, {"a": np.ones(2)}, {}, overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "file", "folder"]


def test_kill_between_the_two_renames_of_an_overwrite_loses_nothing(saved, monkeypatch):
    class Killed(BaseException):
        pass

    rename = pathlib.Path.rename

    def second_rename_never_happens(self, target):
        if self.name.endswith(".tmp"):
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", second_rename_never_happens)
    with pytest.raises(Killed):
        checkpoint.save(saved, {"a": np.ones(2)}, {}, overwrite=True)
    monkeypatch.undo()
    assert not saved.exists()
    assert checkpoint.exists(saved)
    assert_equal_trees(checkpoint.load(saved, make_state()), make_state())
    checkpoint.save(saved, {"a": np.ones(2)}, {}, overwrite=True)
    assert os.listdir(saved.parent) == ["expert"]


def array_files(path):
    return sorted(p for p in (path / "arrays").rglob("*") if p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "removed"])
def test_every_damaged_file_is_noticed(saved, damage):
    files = [*array_files(saved), saved / "integrity.json"]
    assert len(files) >= 5
    for file in files:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        broken = {"truncated": whole[: len(whole) // 2], "emptied": b"", "one bit": bytes(flipped)}
        if damage == "removed":
            file.unlink()
        else:
            file.write_bytes(broken[damage])
        with pytest.raises(ValueError, match=r"is damaged \(.*copy it again or train it anew\.$"):
            checkpoint.load(saved, make_state())
        file.write_bytes(whole)
    assert_equal_trees(checkpoint.load(saved, make_state()), make_state())


@pytest.mark.parametrize("text", ['{"kind": "te', "", "[1, 2]"])
def test_damaged_record_is_noticed(saved, text):
    (saved / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged \(metadata.json"):
        checkpoint.load_metadata(saved)


def test_missing_checkpoint(tmp_path):
    assert not checkpoint.exists(tmp_path / "none")
    for read in (checkpoint.load_metadata, lambda p: checkpoint.load(p, make_state())):
        with pytest.raises(ValueError, match=r"there is no checkpoint at .*none; check the path"):
            read(tmp_path / "none")


def test_another_folder_is_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="is not a checkpoint of this package"):
        checkpoint.load(tmp_path, make_state())


def test_mismatch_names_every_parameter(saved):
    template = {**make_state(width=6), "extra": np.ones(2)}
    del template["step"]
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        checkpoint.load(saved, template)
    message = str(caught.value)
    assert "extra is missing from the checkpoint" in message
    assert "step is unknown to the model" in message
    assert (
        "net/layers/0/kernel should be float32[3, 3, 1, 6], the checkpoint has float32[3, 3, 1, 4]" in message
    )
    assert message.count(" should be ") == 12  # 4 parameters, each with two moments


def test_other_dtype_is_a_mismatch_and_not_cast(tmp_path):
    checkpoint.save(tmp_path / "a", {"w": np.ones(2, np.float32)}, {})
    with pytest.raises(ValueError, match=r"w should be float64\[2\], the checkpoint has float32\[2\]"):
        checkpoint.load(tmp_path / "a", {"w": np.ones(2, np.float64)})


@pytest.mark.parametrize("tree", [{"name": "word"}, {}])
def test_trees_without_numeric_arrays_are_refused(tmp_path, tree):
    with pytest.raises(ValueError, match="needs numeric arrays"):
        checkpoint.save(tmp_path / "a", tree, {})
    assert os.listdir(tmp_path) == []


def test_metadata_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be plain JSON"):
        checkpoint.save(tmp_path / "a", {"w": np.ones(2)}, {"w": np.ones(2)})
    assert os.listdir(tmp_path) == []


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/a"):
        checkpoint.save(tmp_path / "file" / "a", {"w": np.ones(2)}, {})


def test_arrays_from_several_devices_are_saved_as_host_arrays(tmp_path):
    sharded = jax.device_put(jnp.arange(8.0), jax.devices()[0])
    checkpoint.save(tmp_path / "a", {"w": sharded}, {})
    shutil.move(tmp_path / "a", tmp_path / "b")  # a moved checkpoint is still one
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "b", {"w": sharded})["w"], np.arange(8.0))
