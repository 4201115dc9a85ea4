"""Damaged and hostile files end in one clear sentence: nothing runs, and time and memory stay bounded."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hostile

ROOT = Path(__file__).resolve().parent.parent
SEED = 20240607

# Reads every input in a process of its own, with an alarm, a limit on memory, and a hook that sees whatever
# runs, is imported, or is opened for writing while a file is read.
CHILD = """
import json, pathlib, re, resource, signal, sys
import numpy as np
from checkpoints_convert import readers, references
from tests import hostile

folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
path = folder / "input"
seen, watching = [], False
quiet = re.compile(r"open|builtins\\.id|mmap\\.__new__|object\\.__getattr__")

def hook(event, arguments):
    if watching and (not quiet.fullmatch(event) or (event == "open" and not str(arguments[0]).endswith("input"))):
        seen.append(f"{event} {str(arguments)[:100]}")

def whole(tree):
    arrays = readers.flatten(tree, "/")
    return sum(float(np.nansum(a, dtype=np.float64, where=np.isfinite(a))) for a in arrays.values())

def attempt(data):
    global watching
    path.write_bytes(data)
    seen.clear()
    signal.alarm(10)
    watching = True
    try:
        if references.recognised(path):  # as the command does
            references.read(path)
        else:
            whole(readers.read(path).tree)
        return "read"
    except ValueError as error:
        return f"refused {error}"
    except BaseException as error:
        return f"broken {type(error).__name__} {error}"
    finally:
        watching = False
        signal.alarm(0)

def alarm(*_):
    raise TimeoutError("longer than 10 s")

signal.signal(signal.SIGALRM, alarm)
sys.addaudithook(hook)
everything = list(hostile.inputs(seed))
for data in hostile.small_files().values():
    assert attempt(data) == "read"
before = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 400 * 2**20,) * 2)
for name, data, must_fail in everything:
    outcome = attempt(data)
    print(json.dumps([name, must_fail, outcome, list(seen)]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """[name, must fail, what happened, what was seen to run] of every input."""
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(SEED)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["input"]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_there_are_many_different_inputs_and_they_stay_the_same():
    first = list(hostile.inputs(SEED))
    assert len({data for _, data, _ in first}) >= 500
    assert len({name for name, _, _ in first}) == len(first)
    assert first == list(hostile.inputs(SEED))
    assert sum(must_fail for _, _, must_fail in first) >= 500


def test_every_input_ends_in_one_sentence_or_is_read(outcomes):
    assert len(outcomes) >= 500
    for name, must_fail, outcome, _ in outcomes:
        if outcome == "read":
            assert not must_fail, f"{name} was read"
            continue
        assert outcome.startswith("refused cannot read "), f"{name}: {outcome}"
        assert outcome.endswith(".") and outcome.isprintable() and len(outcome) < 700, f"{name}: {outcome}"
        assert "; " in outcome and "Error" not in outcome, f"{name}: {outcome}"


def test_nothing_is_run_imported_or_opened_while_a_file_is_read(outcomes):
    assert {name: seen for name, _, _, seen in outcomes if seen} == {}


def test_forbidden_names_are_refused_by_name(outcomes):
    refused = {name: outcome for name, _, outcome, _ in outcomes}
    for module, name, *_ in hostile.FORBIDDEN:
        for container in ("", " in a zip", " in a legacy file", " in a tensor", " from the stack"):
            assert (
                f"asks for {module}.{name}, which is not" in refused[f"pickles: {module}.{name}{container}"]
            )
    assert (
        "asks for sklearn.linear_model._base.LinearRegression"
        in (refused["foreign_pickles: scikit-learn model, protocol 4"])
    )


def test_some_flipped_bytes_only_change_a_weight(outcomes):
    assert sum(outcome == "read" for _, _, outcome, _ in outcomes) > 50


def test_the_payloads_do_run_under_python_s_own_unpickler(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        pickle.loads(hostile.gadget(protocol))
        assert (tmp_path / hostile.SENTINEL).exists()
        (tmp_path / hostile.SENTINEL).unlink()
