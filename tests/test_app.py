"""The command line, the run's folder and its errors, without the experiment itself."""

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
from jaxmerge import app, files, settings
from jaxmerge.run import Run
from tests.fake_results import fake_pictures, fake_results

ROOT = Path(__file__).resolve().parent.parent
MERGE = str(ROOT / "configs" / "digits_merge.py")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every test works in its own folder, with its own cache, and gives JAX and the signals back."""
    import jax

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.syspath_prepend(str(ROOT))
    names = (
        "jax_compilation_cache_dir",
        "jax_default_matmul_precision",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    for number, handler in handlers.items():
        signal.signal(number, handler)


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


def parse(*arguments):
    return settings.parse(["main.py", *arguments])


# The command line


def test_overrides_are_read_in_every_spelling():
    asked = parse(
        "--config.merge.etas=0.2,0.3",
        *("--config.sampling.sampler", "heun,ode"),
        "--noconfig.experts.align_pixel_scale",
        "--config.likelihood.tolerance=1e-3",
        f"--config={MERGE}",
    )
    assert asked.config.merge.etas == (0.2, 0.3)
    assert asked.config.sampling.sampler == ("heun", "ode")
    assert asked.config.experts.align_pixel_scale is False
    assert asked.config.likelihood.tolerance == 1e-3
    with pytest.raises(AttributeError, match="locked"):
        asked.config.new_key = 1


def test_workdir_is_named_after_the_config_and_its_overrides():
    assert parse("--config", MERGE).workdir == Path("runs/digits_merge")
    assert parse("--config", MERGE, "--config.seed=0").workdir == Path("runs/digits_merge")
    assert parse("--config", MERGE, "--config.seed=3").workdir == Path("runs/digits_merge-seed=3")
    ambiguous = parse("--config", MERGE, "--config.bound.n_images=20")
    assert ambiguous.workdir == Path("runs/digits_merge-bound.n_images=20")
    assert parse("--config", f"{MERGE}:full").workdir == Path("runs/digits_merge-full")
    assert parse("--config", MERGE, "--workdir", "here").workdir == Path("here")
    many = [f"--config.likelihood.{key}=7" for key in ("n_images", "draws", "probes", "batch_size")]
    assert len(parse("--config", MERGE, *many).workdir.name) < 100


def test_full_variant_scores_all_test_images_with_both_samplers():
    full = parse("--config", f"{MERGE}:full").config
    assert full.likelihood.n_images == 360
    assert full.sampling.sampler == ("heun", "ancestral")
    assert full.sampling.seeds == full.sampling.seeds_other == full.sampling.ancestral_seeds == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no config given"),
        (["--config"], "needs the path of a config"),
        (["--config", "configs/digit_merge.py"], "no config file 'configs/digit_merge.py'"),
        (["--config", f"{MERGE}:fulll"], "has the variant 'full' only, got 'fulll'"),
        (["--config", MERGE, "--config.sampling.n_sample=5"], "did you mean 'sampling.n_samples'"),
        (["--config", MERGE, "--config.n_probes=5"], "did you mean 'likelihood.probes'"),
        (["--config", MERGE, "--config.sampling=5"], "'sampling' is a section"),
        (["--config", MERGE, "--config.seed=abc"], "seed must be of type int, got 'abc'"),
        (["--config", MERGE, "--config.likelihood.n_images=1.5"], "n_images must be of type int, got '1.5'"),
        (["--config", MERGE, "--config.likelihood.tolerance=x"], "tolerance must be of type float"),
        (["--config", MERGE, "--config.experts.align_pixel_scale=maybe"], "must be of type bool"),
        (["--config", MERGE, "--config.seed"], "Missing value for flag --config.seed"),
        (["--config", MERGE, "--config.seed=-1"], "seed must be at least 0, got -1"),
        (["--config", MERGE, "--config.likelihood.probes=0"], "likelihood.probes must be at least 1"),
        (["--config", MERGE, "--config.likelihood.tolerance=nan"], "must be a finite number"),
        (["--config", MERGE, "--config.likelihood.rtol=2"], "likelihood.rtol must lie between 0 and 1"),
        (["--config", MERGE, "--config.training.learning_rate=-1"], "training.learning_rate must lie above 0"),
        (["--config", MERGE, "--config.training.ema_decay=1.5"], "must be at least 0 and below 1, got 1.5"),
        (["--config", MERGE, "--config.training.weight_decay=-1"], "weight_decay must be at least 0, got -1"),
        (["--config", MERGE, "--config.expert.dropout=1.0"], "dropout must be at least 0 and below 1, got 1"),
        (["--config", MERGE, "--config.expert.channel_mult=1,0"], "expert.channel_mult must be at least 1"),
        (["--config", MERGE, "--config.sampling.sampler="], "sampling.sampler must name at least one value"),
        (["--config", MERGE, "--config.likelihood.trace=exakt"], "must be one of hutchinson, exact"),
        (["--config", MERGE, "--config.sampling.sampler=heun,euler"], "must be one of heun, ode, ancestral"),
        (["--config", MERGE, "--config.merge.etas=1.5"], "numbers from 0 to 1, got 1.5"),
        (["--config", MERGE, "--config.merge.etas=all"], "numbers from 0 to 1, got 'all'"),
        (["--config", MERGE, "--workdri=x"], "Unknown command line flag 'workdri'"),
        (["--config", MERGE, "stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(arguments, expected, capsys):
    assert app.main(["main.py", *arguments]) == 1
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    assert printed.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "AttributeError"),
        ("def get_config(): return 3", "must return a ConfigDict, got int"),
    ],
)
def test_a_broken_config_file_is_named_with_its_reason(text, expected, capsys):
    Path("mine.py").write_text(text)
    assert app.main(["main.py", "--config=mine.py"]) == 1
    message = capsys.readouterr().err
    assert "mine.py" in message
    assert expected in message
    assert message.count("\n") == 1


def test_help_is_no_error(capsys):
    assert app.main(["main.py", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_uses_explained_keys_and_known_values(path):
    from configs import default

    config = parse("--config", str(path)).config
    assert (
        settings.flatten(config.to_dict()).keys() == settings.flatten(default.get_config().to_dict()).keys()
    )


def test_every_default_key_is_explained():
    text = (ROOT / "configs" / "default.py").read_text()
    code = text.splitlines()
    for number, line in enumerate(code):
        if line.strip().startswith('"') and '": ' in line:
            above = code[number - 1].strip()
            assert above.startswith(("#", '"', "{")), line


# A run from start to end


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


# The run's folder


def test_a_stage_is_computed_once_and_comes_back_the_same():
    def compute():
        return {"x": np.arange(6.0).reshape(2, 3), "n": 3, "word": "ode", "deep": {"y": np.float32(0.5)}}

    with Run("w", {"seed": 0}) as run:
        first = run.stage("sampling-eta=0.2", compute)
    with Run("w", {"seed": 0}) as run:
        again = run.stage("sampling-eta=0.2", lambda: pytest.fail("computed again"))
        assert run.timings.keys() == {"sampling-eta=0.2"}
    np.testing.assert_array_equal(first["x"], again["x"])
    assert (first["n"], first["word"], first["deep"]) == (again["n"], again["word"], again["deep"])
    assert again["deep"] == {"y": 0.5}


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_damaged_stage_is_computed_again_with_one_line(damage, capsys):
    with Run("w", {"seed": 0}) as run:
        run.stage("a", lambda: {"x": np.arange(100)})
    path = Path("w/stages/a.npz")
    path.write_bytes(damage(path.read_bytes()))
    with Run("w", {"seed": 0}) as run:
        assert len(run.stage("a", lambda: {"x": np.arange(100)})["x"]) == 100
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "damaged" in printed


def test_two_runs_in_one_folder_are_refused():
    with Run("w", {"seed": 0}), pytest.raises(ValueError, match=f"process {os.getpid()}"):
        Run("w", {"seed": 0})
    with Run("w", {"seed": 0}) as run:
        assert run.results is None


def test_a_dead_process_leaves_no_lock():
    script = "from jaxmerge.run import Run; import os; Run('w', {'seed': 0}); os._exit(9)"
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert Path("w/.lock").exists()
    with Run("w", {"seed": 0}) as run:
        assert run.path("config.json").exists()


def test_left_overs_of_a_killed_process_are_removed():
    with Run("w", {"seed": 0}):
        pass
    Path("w/stages/.a.npz.1.tmp").write_bytes(b"half")
    with Run("w", {"seed": 0}):
        assert not list(Path("w").rglob("*.tmp"))


def test_a_damaged_config_record_is_named():
    with Run("w", {"seed": 0}):
        pass
    Path("w/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        Run("w", {"seed": 0})


def test_files_hold_plain_json_and_all_columns():
    with Run("w", {"etas": (0.1, 0.2)}) as run:
        run.write_json("a.json", {"x": np.float32(0.5), "y": [np.nan, 1], "z": np.arange(2)})
        run.write_csv("a.csv", [{"a": 1, "b": np.nan}, {"a": 2, "c": 0.5}])
    assert json.loads(Path("w/a.json").read_text()) == {"x": 0.5, "y": [None, 1], "z": [0, 1]}
    assert Path("w/a.csv").read_text() == "a,b,c\n1,,\n2,,0.5\n"


def test_progress_tells_rate_and_remaining_time(capsys, monkeypatch):
    monkeypatch.setattr("jaxmerge.progress.LINE_EVERY", 0.0)
    with Run("w", {}) as run, run.progress(40, "likelihood") as advance:
        advance(10)
        advance(30)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("likelihood: 10/40 images, ")
    assert lines[0].endswith(" s left")
    assert "40/40" in lines[1]
    assert "done in" in lines[1]


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
