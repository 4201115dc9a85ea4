"""The paper's tables and figures as commands."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from jaxmerge import app, settings
from jaxmerge.report import published

ROOT = Path(__file__).resolve().parent.parent
WITH_NUMBERS = {f"table{i}" for i in range(1, 7)} | {"figure2", "figure4", "figure5"}
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
    large = parse(path)
    assert large.data.name in published.DATA and large.experts.low.startswith("checkpoints/")
    assert large.report.published_note
    assert bool(large.report.published) == (path.stem in WITH_NUMBERS)
    assert large.report.published_data == large.data.name
    for name in ("digits", "photos"):
        assert f"python main.py --config configs/paper/{path.stem}.py:{name} " in text
        small = parse(path, f":{name}")
        assert small.data.name == name and small.metric.classifier == f"{name}_classifier"
        assert (small.experts.low, small.experts.high) == (f"{name}_vdm", f"{name}_edm")
        assert small.report.published == large.report.published
        assert "nothing here can be compared with the paper" in small.report.published_note


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_one_runs_on_the_old_imagenet32(path):
    asked = parse(path, ":imagenet32")
    assert asked.data.name == asked.report.published_data == "imagenet32_old"
    assert asked.experts.low == "checkpoints/idode_imagenet32"
    named = f"configs/paper/{path.stem}.py:imagenet32 " in docstring(path)
    assert named or parse(path).data.name == "imagenet32_old"


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


def test_figures_stand_beside_the_tables_that_they_are_drawn_from():
    asked = {path.stem: parse(path).report.published for path in FILES}
    assert asked["figure2"] == (1, 2) and asked["figure4"] == asked["figure5"] == (1, 2, 5)
    assert asked["table3"] == asked["table6"] == (6,)


def test_several_tables_can_be_asked_for_and_unknown_ones_are_refused():
    def asked(text):
        config = str(ROOT / "configs" / "digits_merge.py")
        return settings.parse(["main.py", "--config", config, *text]).config.report

    assert asked([]).published == () and asked([]).merges == 5
    assert asked(["--config.report.published=1,5"]).published == (1, 5)
    assert asked(["--config.report.published=6"]).published == (6,)
    assert asked(["--config.report.merges=0"]).merges == 0
    with pytest.raises(ValueError, match=r"report\.published must be one of 1, 2, 4, 5, 6, got 3"):
        asked(["--config.report.published=1,3"])


def test_network_calls_under_another_protocol_are_said_to_be():
    notes = {path.stem: parse(path).report.published_note for path in FILES}
    assert "stops the solver at every threshold" in notes["table1"]
    for stem in ("table2", "table6", "figure2", "figure4"):
        assert "fixed grid of sampling.ode_steps_per_gamma steps" in notes[stem]
    for stem in ("table3", "table4", "table5"):
        assert "calls" not in notes[stem]


def test_figures_3_and_6_show_every_threshold():
    for path in FILES:
        assert parse(path).report.merges == (0 if path.stem in ("figure3", "figure6") else 5)


def test_photographs_have_the_size_of_their_small_run():
    asked = parse(ROOT / "configs/paper/figure4.py", ":photos")
    assert (asked.likelihood.n_images, asked.bound.n_images, asked.sampling.n_samples) == (40, 64, 120)
    assert (asked.sampling.ancestral_samples, asked.sampling.ancestral_steps) == (60, 64)
    assert asked.sampling.ancestral_samples_other == 60 and asked.merge.etas == (0.2, 0.5, 0.8)


def test_fid_is_never_said_of_embedded_images():
    for path in FILES:
        for variant in (":digits", ":photos"):
            assert parse(path, variant).metric.kind in ("classifier", "none"), path


def test_table_4_prints_the_computed_range_beside_the_published_one(capsys):
    config = str(ROOT / "configs" / "paper" / "table4.py") + ":digits"
    assert app.main(["main.py", "--config", config, "--workdir", "w"]) == 0
    shown = capsys.readouterr().out
    assert "published" in shown and "-12.43" in shown and "-12.429" in shown and "8.764" in shown
    results = json.loads(Path("w/results.json").read_text())
    (paper,) = results["published"]
    entries = paper["entries"]
    note = "nothing here can be compared with the paper"
    assert note in shown and note in results["notes"][-1] and note in Path("w/report.html").read_text()
    assert [entry["difference"] for entry in entries] == pytest.approx([0.0, 0.0], abs=2e-3)
    assert Path("w/pictures/diagram.png").exists()


def run_small(path: Path, *more: str) -> dict:
    small = (
        *("likelihood.n_images=4", "bound.n_images=20", "bound.repeats=1", "likelihood.steps_per_gamma=1.0"),
        *("likelihood.image_tolerance=0.999", "sampling.n_samples=4", "sampling.n_samples_other=4"),
        *("sampling.ancestral_samples=4", "sampling.ancestral_samples_other=4", "sampling.ancestral_steps=4"),
        *("sampling.seeds=1", "sampling.seeds_other=1", "sampling.ancestral_seeds=1"),
        *("sampling.ode_steps_per_gamma=0.5", "merge.etas=0.4", "merge.candidate_step=0.1"),
        *("reconstruction.n_images=0", "cost.repeats=0"),
    )
    overrides = [f"--config.{override}" for override in (*small, *more)]
    assert app.main(["main.py", "--config", f"{path}:digits", "--workdir", "w", *overrides]) == 0
    return json.loads(Path("w/results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "numbers", "shown"),
    [
        ("table2", [2], "fid ode"),
        ("table5", [5], "vlb_std_of_groups"),
        ("table6", [6], "Soft Truncation"),
        ("figure4", [1, 2, 5], "nfe_likelihood"),
    ],
)
def test_a_run_prints_the_published_columns_and_that_the_digits_are_no_match(
    stem, numbers, shown, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    results = run_small(ROOT / "configs" / "paper" / f"{stem}.py")
    printed = capsys.readouterr().out
    assert [paper["table"] for paper in results["published"]] == numbers
    for number in numbers:
        assert f"Beside table {number} of arXiv 2511.19434" in printed
    assert "measured minus published" in printed and shown in printed
    assert "nothing here can be compared with the paper" in printed
    # Numbers of CIFAR-10 beside digits: no difference.
    assert all(
        e["difference"] is None and e["measured"] is None for p in results["published"] for e in p["entries"]
    )
    assert {row["model"] for row in results["rows"]} == {"EDM", "merged", "VDM"}


@pytest.mark.slow
def test_free_samples_say_that_the_digits_are_no_match(capsys):
    few = ("shards.count=12", "shards.size=12", "sampling.ode_steps_per_gamma=0.3")
    config = str(ROOT / "configs" / "paper" / "figure7.py") + ":digits"
    overrides = [f"--config.{override}" for override in few]
    assert app.main(["main.py", "--config", config, "--workdir", "w", *overrides]) == 0
    results = json.loads(Path("w/results.json").read_text())
    note = "nothing here can be compared with the paper"
    assert note in results["notes"][-1] and note in capsys.readouterr().out
    assert note in Path("w/report.html").read_text()
