"""Readers of public checkpoints: exactly the fixtures' arrays, views of the file, one sentence for faults."""

import json
import mmap
import os
import shutil
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from checkpoints_convert.readers import Contents, Module, flatten, module_arrays, read
from tests import foreign_files as files
from tests.synth import synth

FIXTURES = Path(__file__).parent / "fixtures"


def written(folder: Path, data: bytes) -> Path:
    path = folder / "checkpoint"
    path.write_bytes(data)
    return path


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith("cannot read ") and message.endswith(".") and "\n" not in message
    return message


def synthetic(name: str, separator: str) -> dict[str, np.ndarray]:
    """The weights that a fixture's record and fixtures/README.md of the sources describe."""
    out = {}
    for key, shape in json.loads((FIXTURES / f"{name}.json").read_text())["params"].items():
        fan_in = int(np.prod(shape[:-1])) if separator == "/" and len(shape) > 1 else None
        array = synth(key, tuple(shape), fan_in)
        if key == "model.map_noise.freqs":
            array = array * np.float32(160)
        if key in ("model.conv_in.weight", "score_model/conv_in/kernel") or (
            "enc." in key and key.endswith("_conv.weight")
        ):
            array = array * np.float32(0.1)
        out[key] = array
    return out


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def lies_in_a_file(array: np.ndarray) -> bool:
    """The memory belongs to a mapped file."""
    owner = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)


# The fixtures, exactly


@pytest.mark.parametrize(("form", "container"), [("zip", "torch zip"), ("legacy", "torch legacy")])
def test_both_formats_of_torch_give_the_saved_arrays_exactly(form, container):
    contents = read(FIXTURES / f"torch_{form}_mixed.pth")
    assert contents.container == container and contents.metadata == {}
    found = flatten(contents.tree, ".")
    with np.load(FIXTURES / "torch_mixed.npz") as expected:
        assert found["bf16"].dtype == ml_dtypes.bfloat16
        found["bf16"] = found["bf16"].astype(np.float32)
        assert_equal(found, dict(expected))
    assert contents.tree["nested"]["a"] == [1, 2.5, "x", None]


def test_an_edm_pickle_gives_the_network_and_its_arguments():
    record = json.loads((FIXTURES / "edm_ddpmpp_tiny.json").read_text())
    contents = read(FIXTURES / "edm_ddpmpp_tiny.pkl")
    assert contents.container == "EDM pickle"
    network = contents.tree["ema"]
    assert isinstance(network, Module) and network.class_name == record["class_name"]
    assert network.state["_modules"]["model"].class_name == "SongUNet"
    arguments = network.state["_init_kwargs"]
    assert arguments == {key: record["init_kwargs"][key] for key in arguments}
    found, expected = module_arrays(network), synthetic("edm_ddpmpp_tiny", ".")
    filters = [name for name in expected if name.endswith("resample_filter")]
    assert len(filters) > 0
    for name in filters:
        np.testing.assert_array_equal(found.pop(name), np.full((1, 1, 2, 2), 0.25, np.float32))
        del expected[name]
    assert_equal(found, expected)


def test_a_checkpoint_of_the_torch_vdm_holds_the_averaged_weights():
    contents = read(FIXTURES / "vdm_torch_tiny.pt")
    assert contents.container == "torch zip" and type(contents.tree["step"]) is int
    ema = flatten(contents.tree["ema"], ".")
    weights = {k.removeprefix("ema_model."): a for k, a in ema.items() if k.startswith("ema_model.")}
    assert_equal(weights, synthetic("vdm_torch_tiny", "."))
    online = contents.tree["model"]
    assert not all(np.array_equal(online[name], weights[name]) for name in online)


def test_a_train_state_of_flax_holds_the_averaged_weights():
    contents = read(FIXTURES / "vdm_flax_format.flax")
    assert contents.container == "flax msgpack"
    expected = synthetic("vdm_flax_format", "/")
    expected["gamma/w"], expected["gamma/b"] = np.float32([18.31]), np.float32([-13.32])
    assert_equal(flatten(contents.tree["ema_params"], "/"), expected)


def test_a_train_state_is_what_flax_itself_restores():
    path = FIXTURES / "vdm_flax_format.flax"
    expected = flatten(serialization.msgpack_restore(path.read_bytes()), "/")
    assert expected["step"] == 10_000_000
    assert_equal(flatten(read(path).tree, "/"), expected)


# Formats, against what other libraries write


def test_flax_scalars_types_and_nested_lists_survive(tmp_path):
    tree = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.int32),
        "flags": np.array([True, False]),
        "scalar": np.float64(2.5),
        "plain": [1, -7, 2**40, -(2**40), 0.5, "text", None, True, {"x": b"bytes"}],
    }
    found = read(written(tmp_path, serialization.msgpack_serialize(tree))).tree
    plain = found["plain"]
    assert plain[:-1] == tree["plain"][:-1] and bytes(plain[-1]["x"]) == b"bytes"
    arrays = {key: np.asarray(value) for key, value in tree.items() if key != "plain"}
    assert_equal({key: found[key] for key in arrays}, arrays)


def test_large_arrays_that_flax_writes_in_chunks_are_joined(tmp_path, monkeypatch):
    tree = {"a": {"big": np.arange(35, dtype=np.float32).reshape(5, 7)}, "b": np.arange(3)}
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 32)
    data = serialization.msgpack_serialize(tree)
    assert b"__msgpack_chunked_array__" in data
    found = flatten(read(written(tmp_path, data)).tree, "/")
    assert_equal(found, {"a/big": tree["a"]["big"], "b": tree["b"]})


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint8", "bool", "bfloat16"])
def test_safetensors_files_are_read_with_their_texts(tmp_path, dtype):
    arrays = {"a.weight": np.arange(12).reshape(3, 4).astype(dtype), "b": np.asarray(1).astype(dtype)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt", "γ": "text"})
    contents = read(tmp_path / "x.safetensors")
    assert contents.container == "safetensors" and contents.metadata == {"format": "pt", "γ": "text"}
    assert_equal(contents.tree, arrays)


def test_safetensors_files_of_every_header_length_are_read(tmp_path):
    # The first byte is the header's length modulo 256, so it looks like a pickle, a map of flax, or a letter.
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    values = np.float32([1, 2])
    text = json.dumps(header).encode()
    for length in range(len(text), len(text) + 256):
        data = files.safetensors_file(text.ljust(length), values.tobytes())
        contents = read(written(tmp_path, data))
        assert contents.container == "safetensors", f"length {length}, first byte {data[0]:#x}"
        assert_equal(contents.tree, {"w": values})


@pytest.mark.parametrize("prefix", ["archive", "a name with spaces", "ckpt-7"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_torch_zip_may_be_packed_again_under_any_name(tmp_path, prefix, method):
    source = zipfile.ZipFile(FIXTURES / "torch_zip_mixed.pth")
    entries = {name.replace("archive", prefix, 1): source.read(name) for name in source.namelist()}
    again = read(written(tmp_path, files.zipped(entries | {f"{prefix}/byteorder": b"little"}, method)))
    assert_equal(flatten(again.tree, "."), flatten(read(FIXTURES / "torch_zip_mixed.pth").tree, "."))


def test_a_storage_that_shows_a_part_of_another_is_read(tmp_path):
    values = np.arange(10, dtype=np.float32)
    part = files.reference("FloatStorage", "7", 10, ("view", 4, 3))
    body = files.pickled({"part": files.rebuilt(part, 1, (2,), (1,))})
    found = read(written(tmp_path, files.legacy_stream(body, {"7": values}))).tree
    np.testing.assert_array_equal(found["part"], [5.0, 6.0])


def test_an_expanded_tensor_keeps_its_zero_strides(tmp_path):
    storage = files.reference("FloatStorage", "0", 2)
    body = files.pickled({"w": files.rebuilt(storage, 0, (3, 2), (0, 1))})
    data = files.zipped({"archive/data.pkl": body, "archive/data/0": np.float32([1, 2]).tobytes()})
    np.testing.assert_array_equal(read(written(tmp_path, data)).tree["w"], [[1, 2]] * 3)


@pytest.mark.parametrize("array", [np.float64([[1, 2, 3], [4, 5, 6]]), np.asfortranarray(np.eye(3)[:2])])
@pytest.mark.parametrize("core", ["core", "_core"])
def test_arrays_and_numbers_of_numpy_inside_a_pickle_are_read(tmp_path, array, core):
    multiarray = f"numpy.{core}.multiarray"
    dtype = files.Raw(
        files.call(files.named("numpy", "dtype"), "f8", False, True)
        + files.encode((3, "<", None, None, None, -1, -1, 0))
        + files.BUILD
    )
    empty = files.call(files.named(multiarray, "_reconstruct"), files.named("numpy", "ndarray"), (0,), b"b")
    fortran = not array.flags.c_contiguous
    state = (1, array.shape, dtype, fortran, array.tobytes("F" if fortran else "C"))
    value = files.Raw(empty + b"q\x07" + files.encode(state) + files.BUILD)
    scalar = files.call(files.named(multiarray, "scalar"), dtype, np.float64(0.5).tobytes())
    tree = {"array": value, "again": files.Raw(b"h\x07"), "scalar": scalar}
    found = read(written(tmp_path, files.legacy_file(tree))).tree
    assert found["again"] is found["array"] and found["scalar"] == 0.5
    np.testing.assert_array_equal(found["array"], array)


def test_an_edm_file_of_our_own_making_gives_its_arrays_and_no_source_text(tmp_path):
    arrays = {
        "model.enc.8x8_conv.weight": np.arange(8, dtype=np.float32).reshape(2, 4),
        "model.enc.8x8_conv.resample_filter": np.ones((2, 2), np.float16),
        "model.map_layer0.bias": np.float32([1, 2, 3]),
    }
    contents = read(written(tmp_path, files.edm_file("VPPrecond", {"model_type": "DhariwalUNet"}, arrays)))
    network = contents.tree["ema"]
    assert_equal(module_arrays(network), arrays)
    assert network.state["_modules"]["model"].class_name == "DhariwalUNet"
    assert "os.system" not in repr(contents) and "module_src" not in repr(contents)


# Memory


@pytest.mark.parametrize(
    "name", ["edm_ddpmpp_tiny.pkl", "vdm_torch_tiny.pt", "vdm_flax_format.flax", "torch_legacy_mixed.pth"]
)
def test_arrays_are_read_only_views_of_the_file(name):
    contents = read(FIXTURES / name)
    arrays = module_arrays(contents.tree["ema"]) if name.endswith("pkl") else flatten(contents.tree, "/")
    assert len(arrays) > 10
    for key, array in arrays.items():
        assert not array.flags.writeable, key
        assert array.size == 0 or lies_in_a_file(array), key


def test_arrays_outlive_the_file_s_name(tmp_path):
    path = shutil.copy(FIXTURES / "torch_zip_mixed.pth", tmp_path)
    tree = read(path).tree
    os.unlink(path)
    with np.load(FIXTURES / "torch_mixed.npz") as expected:
        np.testing.assert_array_equal(tree["plain"], expected["plain"])


# Faults in one sentence


def test_missing_empty_and_strange_paths_are_named(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "none.pkl")
    assert "got a folder" in refusal(tmp_path)
    assert "got an empty file; download it again" in refusal(written(tmp_path, b""))
    assert "not valid" in refusal("a\0b")
    os.mkfifo(tmp_path / "pipe")
    assert "got a device" in refusal(tmp_path / "pipe")
    assert str(tmp_path / "none.pkl") in refusal(tmp_path / "none.pkl")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, b"x")
    monkeypatch.setattr(os, "open", forbidden)
    assert "got 'Permission denied'; check the path and its permissions" in refusal(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html>", "got a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"hello, world", "a file that begins with b'hello, w'"),
        (b"cposix\nsystem\n(S'touch executed'\ntR.", "asks for posix.system,"),
        (files.pickled({"a": 1}), "a network of EDM"),
        (files.pickled({"a": files.named("builtins", "eval")}), "asks for builtins.eval,"),
        (files.pickled(files.stack_named("os", "system"), protocol=4), "asks for os.system,"),
        (files.zipped({"a.npy": b"x"}), "one data.pkl, found 0 among 1 entries"),
        (files.flax_file({"a": 1}), "arrays of weights, found none"),
    ],
)
def test_files_of_other_kinds_are_told_apart(tmp_path, data, words):
    assert words in refusal(written(tmp_path, data))


def test_values_of_a_big_endian_machine_are_refused(tmp_path):
    body = {"archive/data.pkl": files.pickled({}), "archive/byteorder": b"big"}
    assert "expected little-endian values" in refusal(written(tmp_path, files.zipped(body)))
    old = files.legacy_stream(files.pickled({}), {}, little_endian=False)
    assert "expected little-endian values" in refusal(written(tmp_path, old))


def test_arrays_with_the_same_path_are_refused():
    tree = {"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}
    with pytest.raises(ValueError, match=r"got twice a\.b; take the file"):
        flatten(tree, ".")
    assert set(flatten(tree, "/")) == {"a.b", "a/b"}
    assert flatten(Contents("x", [np.zeros(1)], {}).tree, "/").keys() == {"0"}
