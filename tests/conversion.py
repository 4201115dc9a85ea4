"""Public files of the fixtures' networks, and the command line that converts them, for several test modules."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import yaml

from checkpoints_convert.command import main
from tests import foreign_files, public

ROOT = pathlib.Path(__file__).parent.parent
PICKLE = "edm_ddpmpp_tiny.pkl"
TORCH = "vdm_torch_tiny.pt"
FLAX = "vdm_flax_format.flax"


def official(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a public file, a PyTorch VDM's with its config.yaml beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == TORCH:
        write_config("vdm_torch_tiny", folder)
    return pathlib.Path(shutil.copy(public.FIXTURES / name, folder / name))


def write_config(name: str, folder: pathlib.Path, **changes) -> pathlib.Path:
    """The config.yaml of a PyTorch VDM's run."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(public.description(name)["config"] | changes))
    return path


def edm_pickle(name: str, folder: pathlib.Path, **changes: np.ndarray | None) -> pathlib.Path:
    """A fixture's network as an EDM pickle; `changes` replace arrays, or leave them out (None)."""
    described = public.description(name)
    arrays = {k: v for k, v in (public.weights(name) | changes).items() if v is not None}
    path = folder / f"{name}.pkl"
    path.write_bytes(foreign_files.edm_file(described["class_name"], described["init_kwargs"], arrays))
    return path


def torch_checkpoint(name: str, folder: pathlib.Path) -> pathlib.Path:
    """A fixture's network as a PyTorch VDM checkpoint, whose online weights are half as large."""
    weights = public.weights(name)
    ema = {f"ema_model.{k}": v for k, v in weights.items()}
    tree = {"step": 5, "model": {k: np.asarray(v / 2) for k, v in weights.items()}, "ema": ema}
    path = folder / f"{name}.pt"
    path.write_bytes(foreign_files.zip_file(tree))
    write_config(name, folder)
    return path


def flax_state(name: str, folder: pathlib.Path, averaged: float | None = None) -> pathlib.Path:
    """A fixture's network as a flax train state; with `averaged`, a factor, these are its online weights."""

    def nested(factor: float) -> dict:
        tree: dict = {}
        for key, value in public.weights(name).items():
            *parts, leaf = key.split("/")
            node = tree
            for part in parts:
                node = node.setdefault(part, {})
            node[leaf] = np.float32(factor) * value
        return tree

    tree = {
        "step": np.int64(7),
        "ema_params": nested(1 if averaged is None else averaged),
        "opt_state": {"0": {}},
    }
    if averaged is not None:
        tree["params"] = nested(1)
    path = folder / f"{name}.flax"
    path.write_bytes(foreign_files.flax_file(tree))
    return path


def wide_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """A PyTorch VDM with few layers of 256 channels, 45 MB of zeros, in a folder with its config.yaml."""
    described = public.description("vdm_torch_tiny")
    wide = described["config"] | {"embedding_dim": 256}
    shapes = {k: [n if n % 16 else 16 * n for n in shape] for k, shape in described["params"].items()}
    folder.mkdir()
    path = folder / "wide.pt"
    path.write_bytes(foreign_files.zip_file({k: np.zeros(s, np.float32) for k, s in shapes.items()}))
    (folder / "config.yaml").write_text(yaml.safe_dump(wide))
    return path


def run(*arguments: str | pathlib.Path) -> int:
    """The command line in this process."""
    return main([str(a) for a in arguments])


def environment() -> dict[str, str]:
    """For processes of their own, which find the packages here."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def start(*arguments: str | pathlib.Path, cwd: pathlib.Path) -> subprocess.Popen:
    """The command line in a process of its own, running."""
    command = [sys.executable, "-m", "checkpoints_convert", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True)


def run_apart(*arguments: str | pathlib.Path, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "checkpoints_convert", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def metadata(checkpoint: pathlib.Path) -> dict:
    return json.loads((checkpoint / "metadata.json").read_text())


def python(program: str, *arguments: str, env: dict[str, str]) -> None:
    """A program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
