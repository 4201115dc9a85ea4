"""The paper's tables and figures as commands."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jaxmerge import app, settings
from jaxmerge.report import published

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "configs" / "paper").glob("[tf]*.py"))

pytestmark = pytest.mark.usefixtures("own_folder")


def parse(path: Path, variant: str = ""):
    return settings.parse(["main.py", "--config", f"{path}{variant}"]).config


def docstring(path: Path) -> str:
    spec = importlib.util.spec_from_file_location("paper_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.__doc__


def test_all_six_tables_and_ten_figures_are_there():
    wanted = {f"table{i}" for i in range(1, 7)} | {f"figure{i}" for i in range(1, 11)}
    assert {path.stem for path in FILES} == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_one_names_its_command_and_runs_on_public_and_embedded_experts(path):
    text = docstring(path)
    assert f"python main.py --config configs/paper/{path.stem}.py " in text
    assert f"python main.py --config configs/paper/{path.stem}.py:digits " in text
    large, small = parse(path), parse(path, ":digits")
    assert large.data.name in published.DATA and large.experts.low.startswith("checkpoints/")
    assert small.data.name == "digits" and small.experts.low == "digits_vdm"
    assert small.report.published == large.report.published
    if path.stem.startswith("table"):
        assert large.report.published and large.report.published_note
        assert "nothing here can be compared with these numbers" in small.report.published_note


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_another_variant_is_refused_by_name(path):
    with pytest.raises(ValueError, match=re.escape(f"configs/paper/{path.stem}.py has the variants")):
        parse(path, ":large")


def test_tables_ask_for_the_papers_protocol():
    one, two, five = (parse(ROOT / f"configs/paper/table{i}.py") for i in (1, 2, 5))
    assert (one.likelihood.n_images, one.bound.n_images, one.sampling.n_samples) == (10_000, 0, 0)
    assert (one.likelihood.control, one.likelihood.rtol, one.likelihood.atol) == ("batch", 1e-5, 1e-5)
    assert (two.sampling.n_samples, two.sampling.ancestral_samples, two.sampling.ancestral_steps) == (
        50_000,
        50_000,
        256,
    )
    assert two.metric.kind == "inception" and two.likelihood.n_images == 0
    assert (five.bound.groups, five.bound.n_images) == (10, 5120)


def test_fid_is_never_said_of_the_digits():
    for path in FILES:
        assert parse(path, ":digits").metric.kind in ("classifier", "none"), path


def test_table_4_prints_the_computed_range_beside_the_published_one(capsys):
    config = str(ROOT / "configs" / "paper" / "table4.py") + ":digits"
    assert app.main(["main.py", "--config", config, "--workdir", "w"]) == 0
    shown = capsys.readouterr().out
    assert "published" in shown and "-12.43" in shown and "-12.429" in shown and "8.764" in shown
    entries = json.loads(Path("w/results.json").read_text())["published"]["entries"]
    assert [entry["difference"] for entry in entries] == pytest.approx([0.0, 0.0], abs=2e-3)
    assert Path("w/pictures/diagram.png").exists()
