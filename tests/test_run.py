"""The run's folder: stages, lock, records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.run import Run

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("own_folder")


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


def test_parts_made_by_other_code_are_named_with_their_revision():
    def start(revision):
        return Run("w", {"seed": 0}, environment=lambda: {"revision": revision})

    with start("a1") as run:
        run.stage("first", lambda: {"x": 1})
        assert run.provenance == {"revision": "a1"}
    with start("b2") as run:
        run.stage("first", lambda: pytest.fail("computed again"))
        run.stage("second", lambda: {"x": 2})
    with start("c3") as run:
        for name in ("first", "second"):
            run.stage(name, lambda: pytest.fail("computed again"))
        run.finish({"title": "t", "finding": "f"})
    found = json.loads(Path("w/results.json").read_text())["environment"]
    assert found == {
        "revision": "a1",
        "revisions": {"a1": ["first"], "b2": ["second"]},
        "report_revision": "c3",
    }
    page = Path("w/report.html").read_text()
    assert "a1: first; b2: second" in page and "report_revision" in page


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
