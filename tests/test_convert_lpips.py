"""LPIPS becomes a checkpoint of the metrics: from two public files, or from the state dict of the lpips package."""

import hashlib
import os

import jax
import numpy as np
import pytest

from checkpoints_convert import download, registry
from checkpoints_convert.names import lpips as names
from checkpoints_convert.names import origins
from jaxmerge.metrics import lpips
from jaxmerge.noise import PixelScale
from tests import foreign_files, public
from tests.conversion import PICKLE, metadata, run
from tests.test_metrics_images import COMPARED, PUBLIC, pictures, public_arrays

BACKBONE = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


def is_linear(name: str) -> bool:
    return name.startswith("lin")


def part(arrays: dict, *, linear: bool) -> dict:
    """The linear layers, or all the others."""
    return {name: array for name, array in arrays.items() if is_linear(name) == linear}


def package(arrays: dict, kind: str = "alex") -> dict:
    """The state dict of the lpips package: slices after the compared layers, linear layers twice, shift and scale."""
    tree = {
        "scaling_layer.shift": np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1),
    }
    for name, array in part(arrays, linear=False).items():
        layer, number, *leaf = name.split(".")
        if layer == "features":
            before = sum(int(number) > compared for compared in COMPARED[kind])
            tree[f"net.slice{before + 1}.{number}.{leaf[0]}"] = array
    tree |= part(arrays, linear=True)
    return tree | {f"lins.{name[3:]}": array for name, array in part(arrays, linear=True).items()}


def write(path, tree: dict, form=foreign_files.zip_file):
    path.write_bytes(form(tree))
    return path


def two_files(folder, kind: str, arrays: dict):
    """The linear layers and the backbone under their public names, the latter as torch wrote it before 2018."""

    def old(tree: dict) -> bytes:
        return foreign_files.legacy_file(tree).replace(b"_rebuild_tensor_v2", b"_rebuild_tensor")

    backbone = write(folder / BACKBONE[kind], part(arrays, linear=False), old)
    return write(folder / f"{kind}.pth", part(arrays, linear=True)), backbone


def same_parameters(a: lpips.LPIPS, b: lpips.LPIPS) -> bool:
    a, b = map(lpips.parameters, (a, b))
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


@pytest.fixture(scope="module")
def alex():
    return public_arrays("alex")


@pytest.fixture(scope="module")
def converted(alex, tmp_path_factory):
    """The folder of AlexNet's two files and of the checkpoint `out` that was made of them, self-check included."""
    folder = tmp_path_factory.mktemp("lpips")
    linear, backbone = two_files(folder, "alex", alex)
    assert run(linear, folder / "out", "--backbone", backbone) == 0
    return folder


def check_distances(made, kind: str, arrays: dict) -> None:
    loaded, wanted = lpips.load(made), lpips.from_arrays(kind, arrays)
    assert same_parameters(loaded, wanted)
    a, b = pictures(0, (2, 32, 32, 3)), pictures(1, (2, 32, 32, 3))
    found, want = (lpips.distances(net, a, b, scale=PixelScale(256)) for net in (loaded, wanted))
    np.testing.assert_array_equal(found, want)
    assert (found > 1e-3).all()


# What is converted is what was published


def test_alexnet_s_two_files_measure_as_their_arrays(converted, alex):
    check_distances(converted / "out", "alex", alex)


@pytest.mark.slow
def test_vgg16_s_two_files_measure_as_their_arrays(tmp_path):
    arrays = public_arrays("vgg")
    linear, backbone = two_files(tmp_path, "vgg", arrays)
    assert run(linear, tmp_path / "out", "--backbone", backbone) == 0
    assert metadata(tmp_path / "out")["network"] == {"kind": "lpips", "backbone": "vgg"}
    check_distances(tmp_path / "out", "vgg", arrays)


@pytest.mark.parametrize("form", ["package", "an older package", "torchvision's names"])
def test_one_file_with_both_parts_gives_the_same_network(form, converted, alex, tmp_path):
    older = {name: a for name, a in package(alex).items() if not name.startswith(("lins.", "scaling"))}
    tree = {"package": package(alex), "an older package": older, "torchvision's names": alex}[form]
    assert run(write(tmp_path / "lpips.pth", tree), tmp_path / "out", "--no-check") == 0
    assert same_parameters(lpips.load(tmp_path / "out"), lpips.load(converted / "out"))
    notes = " ".join(metadata(tmp_path / "out")["notes"])
    assert ("5 linear layers that are in the file twice" in notes) == (form == "package")
    assert ("shift and scale of the images" in notes) == (form == "package")
    assert ("the backbone's classifier" in notes) == (form == "torchvision's names")
    assert "backbone" not in metadata(tmp_path / "out")["source"]


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_the_package_s_names_are_slices_after_the_compared_layers(kind):
    net, numbers = lpips.build(kind), [layer[0] for layer in PUBLIC[kind] if layer != "pool"]
    public_names = {f"features.{n}.{leaf}": np.zeros(1) for n in numbers for leaf in ("weight", "bias")}
    linear = {f"lin{k}.model.1.weight": np.zeros(1) for k in range(5)}
    assert set(origins.source_shapes(net, names.torchvision)) == {*public_names, *linear}
    own = {name for name in package(public_names | linear, kind) if not name.startswith(("lins.", "scaling"))}
    assert set(origins.source_shapes(net, names.package(COMPARED[kind]))) == own


def test_the_names_lead_back_to_the_same_arrays(alex):
    back = origins.unfill(lpips.from_arrays("alex", alex), names.torchvision)
    assert {*back, "classifier.1.weight"} == set(alex)
    for name, array in back.items():
        np.testing.assert_array_equal(array, alex[name], err_msg=name)


# The record


def test_the_record_names_both_files_and_both_licences(converted):
    record = metadata(converted / "out")
    source, second = record["source"], record["source"]["backbone"]
    for found, name, entry in (
        (source, "alex.pth", "lpips-alex"),
        (second, BACKBONE["alex"], "torchvision-alexnet"),
    ):
        assert (found["file"], found["name"]) == (name, entry)
        assert found["sha256"] == hashlib.sha256((converted / name).read_bytes()).hexdigest()
    assert (source["container"], second["container"]) == ("torch zip", "torch legacy")
    assert record["network"] == {"kind": "lpips", "backbone": "alex"} and "expert" not in record
    assert record["licence"].startswith("BSD-2-Clause") and "its backbone: BSD-3-Clause" in record["licence"]
    assert record["parameters"] == sum(
        a.size for a in jax.tree.leaves(lpips.parameters(lpips.load(converted / "out")))
    )
    assert "classifier" in record["notes"][0] and "version 0.1" in record["notes"][1]
    assert record["self_check"]["summary"].startswith("passed; the distance of an image to itself")


def test_files_of_other_names_have_no_known_licence(converted, tmp_path):
    for name, new in (("alex.pth", "a.pth"), (BACKBONE["alex"], "b.pth")):
        (tmp_path / new).write_bytes((converted / name).read_bytes())
    assert run(tmp_path / "a.pth", tmp_path / "out", "--backbone", tmp_path / "b.pth", "--no-check") == 0
    record = metadata(tmp_path / "out")
    assert record["licence"].count("not known") == 2 and record["data_set"] == "not known"


def test_inspection_prints_everything_and_writes_nothing(converted, capsys):
    before = sorted(converted.rglob("*"))
    assert run("--inspect", converted / "alex.pth", "--backbone", converted / BACKBONE["alex"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "lpips",
        "backbone alex",
        "2 470 848",
        "BAPPS",
        f"{BACKBONE['alex']}, SHA-256",
        "BSD-3-Clause",
    ):
        assert words in shown
    assert sorted(converted.rglob("*")) == before


def test_short_names_fetch_both_files(converted, tmp_path, monkeypatch, capsys):
    def fetch(url, cache, *, sha256, announce):
        announce()
        return converted / url.rsplit("/", 1)[-1]

    monkeypatch.setattr(download, "fetch", fetch)
    assert run("lpips-alex", tmp_path / "out", "--backbone", "torchvision-alexnet", "--no-check") == 0
    shown = capsys.readouterr().out
    assert "downloading lpips-alex (BAPPS). Licence: BSD-2-Clause" in shown
    assert "downloading torchvision-alexnet (ImageNet). Licence: BSD-3-Clause" in shown
    assert metadata(tmp_path / "out") == {
        k: v for k, v in metadata(converted / "out").items() if k != "self_check"
    }
    assert {entry.name for entry in registry.ENTRIES.values() if entry.kind == "lpips"} == {
        *("lpips-alex", "lpips-vgg", "torchvision-alexnet", "torchvision-vgg16")
    }


# Refusals


def test_an_existing_checkpoint_is_replaced_when_asked_and_never_exported(converted, tmp_path, capsys):
    arguments = (
        converted / "alex.pth",
        tmp_path / "out",
        "--no-check",
        "--backbone",
        converted / BACKBONE["alex"],
    )
    assert run(*arguments) == 0
    assert run(*arguments) == 1 and "already exists" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    assert run("--export", tmp_path / "out", tmp_path / "x.safetensors") == 1
    assert "a checkpoint but not of an expert" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out"]


def changed(arrays: dict, name: str, value: float) -> dict:
    """A copy with one number of one array replaced."""
    array = arrays[name].copy()
    array.flat[1] = value
    return arrays | {name: array}


# What changes AlexNet's two parts, and the words that follow.
WRONG_ARRAYS = {
    "negative": (lambda a: changed(a, "lin2.model.1.weight", -0.5), "lin2.model.1.weight must not be negative, got -0.5"),
    "infinite": (lambda a: changed(a, "lin1.model.1.weight", np.inf), "finite in float32, but these arrays"),
    "without a number": (lambda a: a | {"lin0.model.1.weight": np.full((1, 64, 1, 1), np.nan, np.float32)}, "are not: lin0"),
    "not finite": (lambda a: changed(a, "features.3.weight", np.nan), "checkpoint are not: features.3.weight"),
    "missing": (lambda a: {k: v for k, v in a.items() if k != "features.6.bias"}, "missing features.6.bias"),
    "left over": (lambda a: a | {"features.12.weight": np.zeros(2, np.float32)}, "left over features.12.weight"),
    "misshapen": (lambda a: a | {"features.8.bias": np.zeros(2, np.float32)}, "needs the shape [256], got [2]"),
    "a gap": (lambda a: {k: v for k, v in a.items() if k[:4] != "lin3"}, "[1, 384, 1, 1], none; other backbones"),
    "SqueezeNet": (
        lambda a: a | {f"lin{k}.model.1.weight": np.ones((1, 512, 1, 1), np.float32) for k in (5, 6)},
        "64, 192, 384, 256, 256 (AlexNet) or 64, 128, 256, 512, 512 (VGG16), got [1, 64, 1, 1]",
    ),
    "VGG16": (
        lambda a: a | {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)},
        "are those for AlexNet, but the backbone is VGG16; give torchvision's alexnet-owt-7be5be79.pth",
    ),
    "ResNet": (lambda a: part(a, linear=True) | {"conv1.weight": np.zeros(2, np.float32)}, "none of torchvision's"),
    "VGG11 by half": (
        lambda a: a | {"features.0.weight": np.zeros((32, 3, 3, 3), np.float32)},
        "the backbone is another network; give torchvision's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_ARRAYS)
def test_parts_that_are_damaged_or_do_not_fit_are_refused_in_one_sentence(fault, alex, tmp_path, capsys):
    change, words = WRONG_ARRAYS[fault]
    linear, backbone = two_files(tmp_path, "alex", change(alex))
    assert run(linear, tmp_path / "a" / "out", "--backbone", backbone) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["alex.pth", BACKBONE["alex"]]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("lins.1.model.1.weight", lambda a: a + 1, "must be equal to lin1.model.1.weight, but differs"),
        (
            "scaling_layer.shift",
            lambda a: a + 0.01,
            "scaling_layer.shift must be -0.03, -0.088, -0.188, got -0.02",
        ),
        (
            "scaling_layer.scale",
            lambda a: a[:, :2],
            "scaling_layer.scale must be 0.458, 0.448, 0.45, got 0.458, 0.448;",
        ),
        ("net.slice1.0.weight", lambda a: a[:, :, :3, :3], "but the backbone is VGG16; save LPIPS again"),
        ("net.slice2.3.weight", lambda a: a[:, :3], "net.slice2.3.weight needs the shape [192, 64, 5, 5]"),
    ],
)
def test_a_state_dict_that_contradicts_itself_is_refused(name, change, words, alex, tmp_path, capsys):
    tree = package(alex)
    path = write(tmp_path / "lpips.pth", tree | {name: np.ascontiguousarray(change(tree[name]))})
    assert run(path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("alex.pth", (), "for AlexNet without their backbone; give torchvision's alexnet-owt-7be5be79.pth"),
        ("alex.pth", ("--backbone", "missing.pth"), "there is no such file"),
        ("alex.pth", ("--backbone", "alexnet"), "did you mean"),
        (
            "alex.pth",
            ("--backbone", "alex.pth"),
            "holds none of torchvision's networks alone; give torchvision's",
        ),
        ("alex.pth", ("--kind", "inception"), "it looks like lpips"),
        ("alex.pth", ("--backbone", BACKBONE["alex"], "--weights", "ema"), "one set of weights only"),
        ("alex.pth", ("--backbone", BACKBONE["alex"], "--size", "64"), "images are of any size"),
        (
            BACKBONE["alex"],
            (),
            "a backbone of LPIPS without linear layers; give the linear layers (alex.pth or",
        ),
        (BACKBONE["alex"], ("--backbone", "alex.pth"), "a backbone of LPIPS without linear layers"),
        ("lpips.pth", ("--backbone", BACKBONE["alex"]), "linear layers and a backbone; leave --backbone out"),
        (
            PICKLE,
            ("--backbone", BACKBONE["alex"]),
            "--backbone is for the linear layers of LPIPS, and this file is of",
        ),
        ("ref.npz", ("--backbone", BACKBONE["alex"]), "reference statistics for FID; leave --backbone out"),
    ],
)
def test_files_and_options_that_do_not_fit_are_refused_in_one_sentence(
    source, options, words, converted, alex, tmp_path, capsys, monkeypatch
):
    (tmp_path / PICKLE).write_bytes((public.FIXTURES / PICKLE).read_bytes())
    for name in ("alex.pth", BACKBONE["alex"]):
        (tmp_path / name).symlink_to(converted / name)
    np.savez(tmp_path / "ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    if source == "lpips.pth":
        write(tmp_path / source, package(alex))
    monkeypatch.chdir(tmp_path)
    assert run(source, "out.npz" if source == "ref.npz" else "out", *options) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.npz").exists()


def test_distances_that_do_not_rise_with_the_noise_are_refused_unless_the_check_is_skipped(
    alex, tmp_path, capsys
):
    zeros = {name: np.zeros_like(array) for name, array in part(alex, linear=True).items()}
    linear, backbone = two_files(tmp_path, "alex", alex | zeros)
    assert run(linear, tmp_path / "out", "--backbone", backbone) == 1
    assert "must begin at 0 and rise, got 0, 0, 0, 0, so its weights are wrong" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(linear, tmp_path / "out", "--backbone", backbone, "--no-check") == 0
    assert "self_check" not in metadata(tmp_path / "out")
