"""The CIFAR-10 experiment at full size, on untrained networks and mock images."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_part_of_the_cifar10_experiment_runs_at_full_size(tmp_path):
    command = [
        sys.executable,
        "main.py",
        "--config",
        "configs/cifar10_merge.py:smoke",
        "--workdir",
        str(tmp_path / "w"),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    rows = {row["model"]: row for row in results["rows"] if "dequantization" not in row}
    assert set(rows) == {"EDM", "merged", "VDM"}
    # Two nodes of Heun's grid are one interval of two calls; the EDM ends with one more call, and the switch is
    # a node more.
    assert {model: row["nfe_sampling"] for model, row in rows.items()} == {"VDM": 2, "EDM": 3, "merged": 4}
    for row in rows.values():
        assert math.isfinite(row["bpd"]) and math.isfinite(row["vlb"]) and row["n_failed"] == 0
        assert row["n_samples"] == 2
    assert results["experts"]["VDM"]["weights"] == "untrained" and results["data"]["test"]["name"] == "mock32"
