"""Bad input to the real tasks: one sentence, exit code 1, nothing half-written, earlier results intact."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmerge
from jaxmerge import app, checkpoint
from jaxmerge.experts import io

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "jaxmerge" / "assets"
MERGE = str(ROOT / "configs" / "digits_merge.py")


pytestmark = pytest.mark.usefixtures("own_folder")


def description(kind: str, **changes) -> dict:
    """A shipped expert's description, changed."""
    record = json.loads((ASSETS / f"digits_{kind}" / "metadata.json").read_text())["expert"]
    return record | changes


def save_blank(path: str, kind: str, **changes) -> str:
    """Writes a shipped expert's architecture for other images, all parameters zero; returns its path."""
    record = description(kind, **changes)
    if kind == "edm":
        record["architecture"] = record["architecture"] | {"resolution": record["shape"][0]}
    blank = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), io.parameters(io.build(record)))
    checkpoint.save(path, blank, {"expert": record})
    return path


def copy_shipped(name: str) -> Path:
    """A copy of a shipped checkpoint, to be damaged."""
    return Path(shutil.copytree(ASSETS / name, Path("copies") / name))


def truncate(folder: Path) -> None:
    """Cuts the checkpoint's largest file in half."""
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def refused(capfd, *arguments: str) -> str:
    """Runs the digits merge in ``w``, expects a refusal that leaves no folder, and returns its sentence."""
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w", *arguments]) == 1
    message = capfd.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert message.endswith((".\n", "?\n"))
    assert "Traceback" not in message
    assert not Path("w").exists()
    return message


@pytest.fixture(scope="module")
def experts():
    """The shipped experts without their parameters: enough for every check that is made before computing."""
    return io.build(description("vdm")), io.build(description("edm"))


# Thresholds


@pytest.mark.parametrize("etas", ["0.9", "0.3,0.01"])
def test_a_threshold_outside_both_experts_is_refused_with_the_two_that_they_allow(capfd, etas):
    message = refused(capfd, f"--config.merge.etas={etas}")
    assert "eta from 0.0523 to 0.7736" in message
    assert f"got eta = {'0.9000' if etas == '0.9' else '0.0100'}" in message


def test_a_threshold_given_in_gamma_is_refused_with_the_two_that_are_allowed(experts):
    with pytest.raises(ValueError, match=r"gamma from -6\.9937 to 5\.0000.*gamma = 5\.5000"):
        jaxmerge.Switch(*experts, gamma=5.5)


# Checkpoints


@pytest.mark.parametrize("side", ["low", "high"])
def test_a_checkpoint_that_is_not_there_is_named_with_its_path(capfd, side):
    message = refused(capfd, f"--config.experts.{side}=nowhere/expert")
    assert "there is no expert at nowhere/expert, and the config names no public checkpoint for it" in message


def test_a_file_or_folder_that_is_no_checkpoint_is_refused(capfd):
    Path("notes.txt").write_text("mine")
    assert "notes.txt is not a checkpoint" in refused(capfd, "--config.experts.low=notes.txt")
    Path("empty").mkdir()
    assert "empty is not a checkpoint" in refused(capfd, "--config.experts.low=empty", "--workdir", "other")


def test_a_checkpoint_of_something_else_is_refused(capfd):
    path = copy_shipped("digits_classifier")
    assert f"{path} is a checkpoint but not of an expert" in refused(capfd, f"--config.experts.low={path}")


def test_a_truncated_checkpoint_is_called_damaged(capfd):
    path = copy_shipped("digits_vdm")
    truncate(path)
    message = refused(capfd, f"--config.experts.low={path}")
    assert f"{path.resolve()} is damaged" in message
    assert "copy it again" in message


def test_a_checkpoint_with_a_damaged_record_is_called_damaged(capfd):
    path = copy_shipped("digits_edm")
    (path / "metadata.json").write_text('{"expert": {"kind": "e')
    assert f"{path.resolve()} is damaged (metadata.json" in refused(capfd, f"--config.experts.high={path}")


def test_a_record_that_does_not_fit_its_parameters_names_them(capfd):
    path = copy_shipped("digits_vdm")
    record = json.loads((path / "metadata.json").read_text())
    record["expert"]["architecture"]["width"] = 24
    (path / "metadata.json").write_text(json.dumps(record))
    message = refused(capfd, f"--config.experts.low={path}")
    assert "does not fit the model" in message
    assert "should be float32" in message


# Images


def test_experts_for_different_images_are_refused(capfd):
    save_blank("vdm16", "vdm", shape=[16, 16, 1])
    assert "must have the same image shape" in refused(capfd, "--config.experts.low=vdm16")


def test_experts_for_different_grey_levels_are_refused(capfd):
    save_blank("vdm256", "vdm", levels=256)
    assert "must have the same grey levels" in refused(capfd, "--config.experts.low=vdm256")


def test_images_of_another_shape_than_the_experts_are_refused(capfd):
    low = save_blank("vdm16", "vdm", shape=[16, 16, 1])
    high = save_blank("edm16", "edm", shape=[16, 16, 1])
    message = refused(capfd, f"--config.experts.low={low}", f"--config.experts.high={high}")
    assert "images must have the shape [B, 16, 16, 1], got [1, 8, 8, 1]" in message


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "must be uint8 grey levels 0 to 16, got dtype float32"),
        (np.zeros((2, 16, 16, 1), np.uint8), r"must have the shape \[B, 8, 8, 1\], got \[2, 16, 16, 1\]"),
        (np.zeros((2, 8, 8), np.uint8), r"must have the shape \[B, 8, 8, 1\], got \[2, 8, 8\]"),
        (np.full((2, 8, 8, 1), 200, np.uint8), r"must have 17 grey levels \(0 to 16\), got the level 200"),
    ],
)
def test_the_library_refuses_images_that_do_not_fit(experts, images, expected):
    merged = jaxmerge.Switch(*experts, eta=0.3)
    with pytest.raises(ValueError, match=expected):
        jaxmerge.evaluate(merged, images, key=jax.random.key(0))


@pytest.mark.parametrize("key", ["likelihood.n_images", "bound.n_images"])
def test_more_test_images_than_there_are_is_refused(capfd, key):
    message = refused(capfd, f"--config.{key}=361")
    assert "the test split of digits has 360 images, 361 were asked for" in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.data.name=mnist", "got 'mnist'"),
        ("--config.data.test_split=tset", "must be one of train, validation, test, got 'tset'"),
        ("--config.task=merg", ", got 'merg'"),
    ],
)
def test_a_data_set_split_or_task_that_is_not_there_is_refused(capfd, argument, expected):
    assert expected in refused(capfd, argument)


def test_an_unknown_task_is_told_which_there_are(capfd):
    message = refused(capfd, "--config.task=merg")
    assert all(f" {name}," in message for name in ("merge", "sample", "train_expert", "train_classifier"))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.sampling.heun_steps=1", "steps must be at least 2, got 1"),
        ("--config.merge.candidate_step=0", "candidate_step"),
        ("--config.metric.classifier=nowhere", "nowhere"),
        ("--config.likelihood.draws=2", "draws"),
    ],
)
def test_what_only_a_late_stage_needs_is_refused_before_the_first(capfd, argument, expected):
    assert expected in refused(capfd, argument)


# Folders


@pytest.mark.parametrize("workdir", ["file", "file/w", "file/deep/w"])
def test_a_workdir_that_cannot_be_made_is_named(capfd, workdir):
    Path("file").write_text("mine")
    assert app.main(["main.py", "--config", MERGE, "--workdir", workdir]) == 1
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    assert f"cannot write {workdir}" in message
    assert "--workdir" in message
    assert Path("file").read_text() == "mine"


def test_a_mended_command_may_use_the_folder_of_the_refused_one(capfd):
    refused(capfd, "--config.merge.etas=0.9")
    message = refused(capfd, "--config.merge.etas=0.95")
    assert "got eta = 0.9500" in message


# Whole runs, in processes of their own

TINY = (
    "--config.merge.etas=0.3",
    "--config.merge.candidate_step=0.3",
    "--config.likelihood.n_images=4",
    "--config.likelihood.alignment_images=2",
    "--config.likelihood.tolerance=0.5",
    "--config.likelihood.image_tolerance=0.9",
    "--config.bound.n_images=4",
    "--config.bound.n_times=1",
    "--config.bound.repeats=1",
    "--config.sampling.n_samples=20",
    "--config.sampling.n_samples_other=20",
    "--config.sampling.seeds=1",
    "--config.sampling.sampler=heun",
    "--config.sampling.heun_steps=4",
    "--config.sampling.ancestral_samples=0",
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), "--config", MERGE, *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def stages(workdir: str) -> set[str]:
    return {p.stem for p in Path(workdir, "stages").glob("*.npz")}


def test_a_process_ends_with_exit_code_1_and_one_line():
    arguments = command("--workdir", "w", "--config.merge.etas=0.9")
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: the threshold must lie inside both experts' ranges")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_interrupted_run_continues_with_the_same_numbers():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    straight = subprocess.run(command("--workdir", "a", *TINY), env=environment(), **pipes, timeout=900)
    assert straight.returncode == 0, straight.stderr
    with subprocess.Popen(command("--workdir", "b", *TINY), env=environment(), **pipes) as process:
        while "proposal" not in stages("b"):
            assert process.poll() is None, process.communicate()
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=300)
    assert process.returncode == 130, message
    assert "the run continues" in message
    assert "Traceback" not in message
    assert stages("b") < stages("a")
    assert not Path("b/results.json").exists()
    assert not list(Path("b").rglob("*.tmp"))
    kept = {p: p.stat().st_mtime_ns for p in Path("b/stages").iterdir()}
    again = subprocess.run(command("--workdir", "b", *TINY), env=environment(), **pipes, timeout=900)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    rows = [json.loads(Path(w, "results.json").read_text())["rows"] for w in "ab"]
    assert rows[0] == rows[1]

    # The finished run refuses another config and stays as it is.
    before = {p: p.read_bytes() for p in Path("a").rglob("*") if p.is_file() and p.name != ".lock"}
    other = subprocess.run(
        command("--workdir", "a", *TINY, "--config.seed=1"), env=environment(), **pipes, timeout=120
    )
    assert other.returncode == 1
    assert "holds the run of another config (its seed is 0, this one's 1)" in other.stderr
    assert {p: p.read_bytes() for p in Path("a").rglob("*") if p.is_file() and p.name != ".lock"} == before
