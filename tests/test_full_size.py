"""The real CIFAR-10 networks, from official file formats to a merged sample and its likelihood."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import conversion, foreign_files, public

pytestmark = pytest.mark.slow
EDM, VDM = "edm_cifar10_uncond_vp_full", "vdm_torch_cifar10_full"


def run(*arguments) -> dict:
    """The figures of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.full_size", *map(str, arguments)],
        cwd=conversion.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def tame(name: str) -> dict[str, np.ndarray]:
    """A network's synthetic weights, its last convolution scaled down so that the flow is tame."""
    weights = public.weights(name)
    last = "model.dec.32x32_aux_conv" if name == EDM else "model.conv_out.2"
    return {k: v * np.float32(0.02) if k.startswith(last) else v for k, v in weights.items()}


# Processor seconds of a conversion with its self-check, about three times what two idle cores need.
CPU_SECONDS = 60


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The two public files."""
    folder = tmp_path_factory.mktemp("sources")
    described = public.description(EDM)
    edm = foreign_files.edm_file(described["class_name"], described["init_kwargs"], tame(EDM))
    (folder / "edm.pkl").write_bytes(edm)
    weights = tame(VDM)
    ema = {f"ema_model.{k}": v for k, v in weights.items()}
    (folder / "vdm.pt").write_bytes(foreign_files.zip_file({"step": 1, "model": weights, "ema": ema}))
    conversion.write_config(VDM, folder)
    return {EDM: folder / "edm.pkl", VDM: folder / "vdm.pt"}


def test_full_networks_are_converted_merged_sampled_and_scored(sources, tmp_path):
    tiny = conversion.official(conversion.PICKLE, tmp_path / "tiny")
    figures = {"tiny": run("convert", tiny, tmp_path / "t", "--no-check")}
    for name, path in sources.items():
        found = run("convert", path, tmp_path / name, "--no-check")
        found["MB"] = path.stat().st_size / 1e6
        found["times_file"] = 1000 * (found["peak_GB"] - figures["tiny"]["peak_GB"]) / found["MB"]
        figures[name] = found
        assert 0 < found["times_file"] < 2.5
        checked = figures[f"{name} with self-check"] = run("convert", path, tmp_path / f"{name} checked")
        checked["times_file"] = 1000 * (checked["peak_GB"] - figures["tiny"]["peak_GB"]) / found["MB"]
        assert checked["cpu_s"] < CPU_SECONDS and checked["times_file"] < 3
    figures["merge"] = found = run("merge", tmp_path / VDM, tmp_path / EDM)
    print(json.dumps(figures, indent=1))
    assert max(figure["peak_GB"] for figure in figures.values()) < 6
    assert found["ok"] and found["nfe_sampling"] <= 40 and found["levels"] > 10
    # The flow is tame and the sample noisy, so its levels are as good as uniform: 8 bits, give or take one.
    assert 7 < found["bpd"] < 10
