"""Published numbers beside measured ones."""

import json
import pathlib

import pytest

from jaxmerge.report import published


def test_rows_are_the_papers_columns_in_our_names():
    """A few entries typed from the paper's tables."""
    table1 = published.rows(1, "cifar10")
    assert [(r["model"], r["eta"]) for r in table1][:3] == [
        ("EDM", None),
        ("merged", "eta_min"),
        ("merged", 0.1),
    ]
    assert table1[0]["bpd"] == 3.21 and table1[-1] == {
        "model": "VDM",
        "eta": None,
        "bpd": 2.64,
        "nfe_likelihood": 248,
    }
    at = {(r["eta"], r["sampler"]): r for r in published.rows(2, "cifar10") if r["model"] == "merged"}
    assert at[0.3, "ode"] == {
        "model": "merged",
        "eta": 0.3,
        "sampler": "ode",
        "fid": 2.01,
        "nfe_sampling": 169,
    }
    assert at[0.3, "ancestral"]["fid"] == 3.39 and "nfe_sampling" not in at[0.3, "ancestral"]
    bounds = {r["eta"]: r for r in published.rows(5, "imagenet32_old")}
    assert bounds[0.4]["vlb"] == 3.73 and bounds["eta_max"]["vlb_std"] == 0.002


@pytest.mark.parametrize("number", published.TABLES)
@pytest.mark.parametrize("data", published.DATA)
def test_every_published_list_has_a_value_per_column(number, data):
    assert len(published.rows(number, data)) == len(published.columns()) * (2 if number == 2 else 1)


def test_measurements_meet_the_published_row_of_their_model_threshold_and_sampler():
    measured = [
        {"model": "EDM", "eta": None, "dequantization": "uniform", "bpd": 9.0},
        {"model": "EDM", "eta": None, "bpd": 3.25, "bpd_se": 0.01},
        {"model": "merged", "eta": 0.047, "bpd": 3.0},
        {"model": "merged", "eta": 0.4, "bpd": 2.6, "nfe_likelihood": 100},
        {"model": "merged", "eta": 0.41, "bpd": 1.0},
    ]
    entries = {(e["model"], e["eta"], e["quantity"]): e for e in published.beside(measured, 1, "cifar10")}
    edm = entries["EDM", None, "bpd"]
    assert (edm["published"], edm["measured"], edm["se"]) == (3.21, 3.25, 0.01)
    assert edm["difference"] == pytest.approx(0.04)
    assert entries["merged", 0.4, "bpd"]["measured"] == 2.6
    assert entries["merged", 0.4, "nfe_likelihood"]["difference"] == 100 - 259
    assert entries["merged", "eta_min", "bpd"]["measured"] == 3.0
    assert entries["merged", 0.5, "bpd"]["measured"] is None
    assert entries["VDM", None, "bpd"]["difference"] is None


def test_samples_of_another_sampler_are_not_compared():
    measured = [
        {"model": "VDM", "eta": None, "sampler": "heun", "fid": 1.0},
        {"model": "VDM", "eta": None, "sampler": "ode", "fid": 9.0},
    ]
    entries = [
        e for e in published.beside(measured, 2, "cifar10") if e["model"] == "VDM" and e["quantity"] == "fid"
    ]
    assert {e["sampler"]: e["measured"] for e in entries} == {"ancestral": None, "ode": 9.0}


@pytest.mark.parametrize(("number", "data"), [(3, "cifar10"), (1, "imagenet32_new"), (1, "digits")])
def test_a_table_that_was_not_published_is_refused(number, data):
    with pytest.raises(
        ValueError, match="published sweeps are tables 1, 2, 5 for cifar10 and imagenet32_old"
    ):
        published.rows(number, data)


def test_the_file_names_its_source():
    path = pathlib.Path(published.__file__).parent.parent / "assets" / "paper_tables.json"
    assert json.loads(path.read_text())["source"].startswith("arXiv 2511.19434")
