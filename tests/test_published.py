"""Published numbers beside measured ones."""

import json
import pathlib

import pytest

from configs import default
from jaxmerge.report import published
from jaxmerge.tasks import summary


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
    assert bounds[0.4]["vlb"] == 3.73 and bounds["eta_max"]["vlb_std_of_groups"] == 0.002


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


def test_the_nearest_of_two_thresholds_that_print_alike_is_compared():
    measured = [
        {"model": "merged", "eta": 0.297, "bpd": 9.0},
        {"model": "merged", "eta": 0.3, "bpd": 2.7},
    ]
    entries = {(e["eta"], e["quantity"]): e for e in published.beside(measured, 1, "cifar10")}
    assert entries[0.3, "bpd"]["measured"] == 2.7


def test_deviations_of_the_bound_over_batches_are_compared_too():
    measured = [
        {"model": "VDM", "eta": None, "vlb": 2.66, "vlb_se": 0.01, "vlb_std_of_groups": 0.007},
        {"model": "merged", "eta": 0.4, "vlb": 2.63},
    ]
    entries = {(e["model"], e["eta"], e["quantity"]): e for e in published.beside(measured, 5, "cifar10")}
    deviation = entries["VDM", None, "vlb_std_of_groups"]
    assert (deviation["published"], deviation["measured"], deviation["se"]) == (0.005, 0.007, None)
    assert deviation["difference"] == pytest.approx(0.002)
    assert entries["VDM", None, "vlb"]["difference"] == pytest.approx(0.01)
    other = entries["merged", 0.4, "vlb_std_of_groups"]
    assert (other["published"], other["measured"], other["difference"]) == (0.008, None, None)
    assert {e["quantity"] for e in entries.values()} == {"vlb", "vlb_std_of_groups"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("2.64 / 2.66 VLB", 9.37, 206), {"bpd": 2.64, "vlb": 2.66, "fid": 9.37, "nfe_sampling": 206}),
        (("3.72* / 3.72* VLB", "9.85*", 158), {"bpd": 3.72, "vlb": 3.72, "fid": 9.85, "nfe_sampling": 158}),
        (("2.65 VLB", 7.41, None), {"vlb": 2.65, "fid": 7.41}),
        ((None, 1.97, 35), {"fid": 1.97, "nfe_sampling": 35}),
        ((None, None, None), {}),
    ],
)
def test_printed_values_become_numbers(row, expected):
    assert published.printed_values(*row, as_numbers=True) == expected


def test_table_6_pairs_the_papers_models_with_this_runs_and_leaves_other_peoples_alone():
    measured = [
        {
            "model": "EDM",
            "eta": None,
            "sampler": "ode",
            "bpd": 3.25,
            "bpd_se": 0.01,
            "fid": 2.5,
            "nfe_sampling": 100,
        },
        {"model": "merged", "eta": 0.4, "sampler": "ode", "bpd": 2.6, "fid": 2.2, "nfe_sampling": 180},
        {"model": "merged", "eta": 0.36, "sampler": "ode", "bpd": 2.61},
        {"model": "VDM", "eta": None, "sampler": "ode", "bpd": 2.65, "vlb": 2.64, "fid": 9.0},
        {"model": "EDM", "eta": None, "dequantization": "uniform", "bpd": 3.5},
    ]
    entries = published.beside(measured, 6, "cifar10")
    at = {(e["model"], e["eta"], e["sampler"], e["quantity"]): e for e in entries}
    assert len(at) == len(entries)
    expected = {
        ("EDM", None, None, "bpd"): (3.21, 3.25, 0.04),
        ("EDM", None, "ode", "fid"): (2.02, 2.5, 0.48),
        ("EDM", None, "ode", "nfe_sampling"): (125, 100, -25),
        ("VDM", None, None, "bpd"): (2.64, 2.65, 0.01),
        ("VDM", None, None, "vlb"): (2.66, 2.64, -0.02),
        ("VDM", None, "ode", "fid"): (9.37, 9.0, -0.37),
        ("merged", 0.4, None, "bpd"): (2.62, 2.6, -0.02),
        ("merged", 0.4, "ode", "fid"): (2.14, 2.2, 0.06),
        ("merged", 0.4, "ode", "nfe_sampling"): (173, 180, 7),
    }
    for key, values in expected.items():
        found = at[key]
        assert (found["published"], found["measured"], found["difference"]) == pytest.approx(values), key
    assert at["EDM", None, None, "bpd"]["se"] == 0.01
    # No such row here, other people's, and only here.
    assert at["merged", 0.3, "ode", "fid"]["published"] == 2.01
    assert at["Soft Truncation", None, None, "bpd"]["published"] == "3.01 uniform"
    assert at["here: merged", 0.36, None, "bpd"]["measured"] == 2.61
    assert [e["model"] for e in entries if e["model"].startswith("here: ")] == ["here: merged"]
    compared = {key for key, entry in at.items() if entry["difference"] is not None}
    assert compared == set(expected)


def test_the_edm_by_heun_meets_the_published_one():
    measured = [
        {"model": "EDM", "eta": None, "sampler": "heun", "fid": 2.0, "fid_se": 0.02, "nfe_sampling": 35.0},
        {"model": "merged", "eta": 0.3, "sampler": "heun", "fid": 2.3, "nfe_sampling": 36.0},
    ]
    entries = {(e["model"], e["sampler"], e["quantity"]): e for e in published.beside(measured, 6, "cifar10")}
    fid, calls = (entries["EDM", "heun", quantity] for quantity in published.OF_SAMPLES)
    assert (fid["published"], fid["se"], calls["published"], calls["difference"]) == (1.97, 0.02, 35, 0)
    assert fid["difference"] == pytest.approx(0.03)
    assert entries["EDM", "ode", "fid"]["measured"] is None
    assert entries["here: merged", "heun", "fid"]["measured"] == 2.3


def test_the_merge_on_imagenet32_meets_its_own_row():
    measured = [{"model": "merged", "eta": 0.5, "sampler": "ode", "bpd": 3.7, "fid": 7.0}]
    entries = {
        (e["model"], e["eta"], e["quantity"]): e for e in published.beside(measured, 6, "imagenet32_old")
    }
    assert entries["merged", 0.5, "fid"]["difference"] == pytest.approx(0.42)
    assert entries["merged", 0.5, "bpd"]["difference"] == pytest.approx(-0.02)
    assert entries["EDM", None, "fid"]["published"] == 7.38
    assert ("merged", 0.4, "fid") not in entries


def test_every_own_row_is_in_the_table():
    assert set(published.OWN) <= {row[0] for row in published.tables()["table6_comparison"]}


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


@pytest.mark.parametrize(("name", "difference"), [("cifar10", 0.06), ("digits", None)])
def test_numbers_of_another_data_set_stand_beside_no_measurement(name, difference):
    config = default.get_config()
    config.data.name = name
    config.report.published = (1, 5)
    one, five = summary.beside_paper(config, [{"model": "VDM", "eta": None, "bpd": 2.7}])
    assert (one["table"], five["table"], one["data"]) == (1, 5, "cifar10")
    found = next(e for e in one["entries"] if e["model"] == "VDM" and e["quantity"] == "bpd")
    assert found["published"] == 2.64 and found["difference"] == pytest.approx(difference)
