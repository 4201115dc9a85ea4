"""A run from start to end, its errors and signals, and the compilation cache, without the experiment itself."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

import jaxmerge
from jaxmerge import app, files
from jaxmerge.run import Run
from tests.fake_results import fake_pictures, fake_results

ROOT = Path(__file__).resolve().parent.parent
MERGE = str(ROOT / "configs" / "digits_merge.py")

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def fake_task(monkeypatch):
    """Replaces the experiment by `calls.run`, which a test may set."""
    module = types.ModuleType("jaxmerge.tasks")
    module.calls = 0

    def run(config, run):
        module.calls += 1
        run.stage("work", lambda: {"x": np.arange(3)})
        results = {
            key: value for key, value in fake_results().items() if key in ("rows", "proposed", "levels")
        }
        run.finish(results, fake_pictures())

    module.run = run
    monkeypatch.setitem(sys.modules, "jaxmerge.tasks", module)
    monkeypatch.setattr(jaxmerge, "tasks", module, raising=False)
    return module


def test_a_finished_run_explains_itself(fake_task, capsys):
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "The merge at the proposed η" in printed.out
    assert printed.out.strip().endswith("report.html")
    record = json.loads(Path("w/config.json").read_text())
    assert record["config"]["sampling"]["seeds"] == 3
    assert record["environment"]["versions"]["jax"]
    assert record["environment"]["devices"]
    results = json.loads(Path("w/results.json").read_text())
    assert results["timings"].keys() == {"work"}
    assert {"model", "eta", "bpd", "bpd_se", "vlb", "vlb_se", "frechet", "frechet_se"} <= results["rows"][
        0
    ].keys()
    with open("w/results.csv") as file:
        assert len(list(csv.DictReader(file))) == len(results["rows"])
    assert Path("w/report.html").read_text().startswith("<!DOCTYPE html>")
    assert Path("w/pictures/trade_off.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("w").rglob("*.tmp"))


def test_a_finished_run_is_shown_again_without_computing(fake_task, capsys):
    app.main(["main.py", "--config", MERGE])
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != ".lock"}
    assert app.main(["main.py", "--config", MERGE]) == 0
    assert capsys.readouterr().out == first
    assert fake_task.calls == 1
    assert {
        path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != ".lock"
    } == before


def test_a_folder_with_another_configs_run_is_refused_and_left_as_it_is(fake_task, capsys):
    app.main(["main.py", "--config", MERGE, "--workdir", "w"])
    kept = Path("w/results.json").read_bytes()
    capsys.readouterr()
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w", "--config.likelihood.probes=2"]) == 1
    message = capsys.readouterr().err
    assert "its likelihood.probes is 1, this one's 2" in message
    assert "--workdir" in message
    assert Path("w/results.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "w/stages/work.npz"),
            "no space left to write w/stages",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "w"), "no permission to use w"),
        (ValueError("eta must lie in [0.052, 0.774],\n got 0.9"), "eta must lie in [0.052, 0.774], got 0.9."),
    ],
)
def test_errors_of_the_experiment_get_one_sentence(fake_task, capsys, error, expected):
    def fail(config, run):
        raise error

    fake_task.run = fail
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w"]) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert not Path("w/results.json").exists()


def test_a_file_in_the_place_of_the_folder_is_named(fake_task, capsys):
    Path("w").write_text("mine")
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w"]) == 1
    assert "a file is where a folder is needed" in capsys.readouterr().err
    assert Path("w").read_text() == "mine"


def test_a_full_disk_leaves_nothing_half_written(fake_task, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run("w", {"seed": 0}) as run:
        run.stage("first", lambda: {"x": 1.0})
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            run.stage("second", lambda: {"x": 2.0})
    assert "second.npz" in caught.value.filename
    assert sorted(path.name for path in Path("w/stages").iterdir()) == ["first.npz"]


STOPPED = """
    import sys, types
    import jaxmerge
    tasks = types.ModuleType("jaxmerge.tasks")
    sys.modules["jaxmerge.tasks"] = jaxmerge.tasks = tasks
    def run(config, run):
        import time
        run.stage("first", lambda: {"x": 1.5})
        print("first is done", flush=True)
        if len(sys.argv) < 6:
            time.sleep(60)
        run.write_json("results.json", {"finding": "first is %s" % run.stage("first", dict)["x"]})
    tasks.run = run
    from jaxmerge import app
    sys.exit(app.main(sys.argv[:5]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_continues(number, code):
    Path("script.py").write_text(textwrap.dedent(STOPPED))
    command = [sys.executable, "script.py", "--config", MERGE, "--workdir", "w"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "first is done\n"
        process.send_signal(number)
        _, message = process.communicate(timeout=60)
    assert process.returncode == code
    assert message.count("\n") == 1
    assert "the run continues" in message
    again = subprocess.run([*command, "go"], env=environment, **pipes, timeout=60)
    assert again.returncode == 0, again.stderr
    assert "first is 1.5" in again.stdout


def test_a_second_signal_ends_the_process_also_after_a_stop_within_a_training(monkeypatch, capsys):
    before = {number: signal.getsignal(number) for number in app.STOPPING}

    def stopped_by_the_training(asked):
        raise app.Stopped(
            signal.SIGTERM
        )  # not by the app's own handler, which would have released the signals

    monkeypatch.setattr(app, "execute", stopped_by_the_training)
    try:
        assert app.main(["main.py", "--config", MERGE]) == 143
        assert {signal.getsignal(number) for number in app.STOPPING} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "the run continues" in capsys.readouterr().err


# The compilation cache


def test_a_second_start_finds_the_compiled_program():
    script = """
        from jaxmerge import app
        print(app.enable_compilation_cache())
        import jax, jax.numpy as jnp
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    counts = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == str(Path("cache/jaxmerge/xla").resolve()), done.stderr
        counts.append(len(list(Path("cache/jaxmerge/xla").glob("*-cache"))))
    assert counts[0] == counts[1] > 0


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert app.enable_compilation_cache() == tmp_path / "mine"


def test_a_cache_that_cannot_be_written_is_done_without(fake_task, monkeypatch, capsys):
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "file")
    assert app.main(["main.py", "--config", MERGE, "--workdir", "w"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("compilation cache cannot be written") == 1
    assert printed.err == ""


def test_revision_is_this_repositorys_or_nothing():
    revision = app.revision()
    assert revision is None or len(revision.rstrip("+")) == 40


def test_main_is_short_and_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), "--config", MERGE, "--config.sede=1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "error: unknown config key 'sede'; did you mean 'seed'?\n"
    assert done.stdout == ""


def test_importing_the_app_is_quick_because_it_imports_no_jax():
    script = "import sys; from jaxmerge import app, settings; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "False"
