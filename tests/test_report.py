"""The report, from made-up results: what it says, that it stands alone, and that it is honest."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxmerge.files import plain
from jaxmerge.report import page, plots, style, tables
from jaxmerge.report.finding import finding
from jaxmerge.run import console
from tests.fake_results import fake_pictures, fake_results


@pytest.fixture(scope="module")
def results():
    return plain(fake_results())


@pytest.fixture(scope="module")
def text(results):
    return page.page(results, page.figures(results, fake_pictures()))


def test_page_needs_nothing_from_outside(text):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert not re.search(r"@import|<script|url\((?!#)", text)


def test_page_is_well_formed_and_its_identifiers_are_unique(text):
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(identifiers)


def test_page_opens_with_the_finding_and_shows_every_part(text, results):
    assert text.index("beats both experts") < text.index("<section>")
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    for heading in ("Likelihood against quality", "Samples from the same noise", "Pixel-scale alignment"):
        assert heading in headings
    assert "Two images of 180 were solved again" in text
    assert "0.034 ± 0.003" in text.replace("0.0340 ± 0.0030", "0.034 ± 0.003")
    for column in tables.DEFINITIONS:
        assert f"<dt>{column}</dt>" in text


def test_page_without_optional_parts_still_stands():
    bare = {"name": "training", "rows": [{"step": 100, "loss": 0.25}], "finding": "Done."}
    bare["training"] = {"series": {"loss": {"step": [0, 50, 100], "value": [1.0, 0.5, 0.25]}}}
    text = page.page(bare, page.figures(bare, {}))
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Training", "Measured values", "How it was run", "Config"]
    assert "<td>0.25</td>" in text


def test_page_escapes_what_it_is_given(results):
    text = page.page(results | {"title": "<b>a</b>", "notes": ["x < y & z"]}, {})
    assert "<b>a</b>" not in text
    assert "x &lt; y &amp; z" in text


@pytest.mark.parametrize(
    ("bpd", "frechet", "expected"),
    [
        (1.785, 0.31, "beats both experts in likelihood and keeps the better expert's sample quality"),
        (1.785, 0.60, "beats both experts in likelihood but not without a loss of sample quality"),
        (1.87, 0.31, "does not beat both experts in likelihood"),
        (1.849, 0.31, "not distinguishable from the VDM"),
        (1.95, 0.60, "does not beat both experts in likelihood and loses sample quality"),
    ],
)
def test_finding_says_what_the_numbers_say(bpd, frechet, expected):
    assert expected in finding(plain(fake_results(bpd, frechet)))


def test_finding_takes_paired_differences_in_either_direction(results):
    sentence = finding(results)
    assert "0.0670 ± 0.0040 below the VDM" in sentence
    assert "0.1220 ± 0.0060 below the EDM" in sentence
    unpaired = finding(results | {"paired": []})
    assert "below the VDM (unpaired)" in unpaired


def test_finding_adds_the_distance_seed_by_seed_of_the_same_pair_and_sampler(results):
    sampler = results["rows"][0]["sampler"]
    pair = {"quantity": "frechet", "sampler": sampler, "difference": 0.033, "se": 0.003, "n_seeds": 5}
    pairs = [
        pair | {"model_a": ["merged", 0.2], "model_b": "EDM"},
        pair | {"model_a": ["merged", 0.2], "model_b": "VDM", "difference": -2.5, "sampler": "another"},
        pair | {"model_a": ["merged", 0.3], "model_b": "VDM", "difference": -1.5},
    ]
    sentence = finding(results | {"paired": results["paired"] + pairs})
    assert "; seed by seed 0.0330 ± 0.0030 above)" in sentence
    assert sentence.count("seed by seed") == 1
    # It stands beside the verdict, it does not make it.
    assert sentence.split(":")[0] == finding(results).split(":")[0]


def test_distances_of_a_single_seed_decide_nothing(results):
    rows = [row | {"frechet_se": None} for row in results["rows"]]
    sentence = finding(results | {"rows": rows})
    assert "clearly" not in sentence and "within noise" not in sentence and "quality" not in sentence
    assert sentence.endswith(", without errors.")
    assert "beats both experts in likelihood:" in sentence


def test_finding_ignores_an_expert_row_under_another_dequantisation(results):
    rows = [row | {"bpd": 1.0} if row.get("dequantization") == "uniform" else row for row in results["rows"]]
    assert finding(results | {"rows": rows}) == finding(results)


def test_a_run_that_is_judged_by_fid_says_fid_everywhere(results):
    def renamed(row):
        names = {"frechet": "fid", "frechet_se": "fid_se"}
        return {names.get(key, key): value for key, value in row.items()}

    judged = {
        "rows": [renamed(row) for row in results["rows"]],
        "quality": {"column": "fid", "short": "FID", "long": "FID"},
        "floor": {"fid": 0.5, "n_images": 10, "what": "that of 10 test images"},
    }
    both = results | judged
    assert "; FID (" in finding(both) and "Fréchet" not in finding(both)
    header, cells = tables.columns(both)
    assert f"FID, {results['rows'][0]['sampler']}" in header and "Fréchet" not in " ".join(header)
    assert cells[0][3] != "–"
    axes = page.figures(both, fake_pictures())["trade_off"].axes
    assert any("FID" in axis.get_ylabel() for axis in axes)
    assert not any("Fréchet" in axis.get_ylabel() for axis in axes)


def test_published_numbers_stand_beside_measured_ones_with_their_difference(results):
    from jaxmerge.report import published

    measured = [{"model": "VDM", "eta": None, "bpd": 2.7, "bpd_se": 0.01}]
    entries = published.beside(measured, 1, "cifar10")
    paper = {"table": 1, "data": "cifar10", "source": "a paper", "note": "Other weights.", "entries": entries}
    text = page.page(results | {"published": [paper, paper | {"table": 5}]}, {})
    section = text[text.index("Beside the paper") : text.index("Paired differences")]
    assert "<td>VDM</td><td>bpd</td><td>2.64</td><td>2.700 ± 0.010</td><td>+0.06</td>" in section
    assert "<td>EDM</td><td>bpd</td><td>3.21</td><td>–</td><td>–</td>" in section
    assert "Table 1 of a paper" in section and "Table 5 of a paper" in section
    assert section.count("Other weights.") == 1


def test_finding_without_a_proposal_claims_nothing(results):
    assert "compares nothing" in finding(results | {"proposed": {}})


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (1.78512, 0.0123, "1.785 ± 0.012"),
        (1.78512, None, "1.785"),
        (1.78512, 0.0, "1.785"),
        (None, 0.1, "–"),
        (float("nan"), 0.1, "–"),
        (123.4, 12.0, "123 ± 12"),
        (-0.067, 0.00412, "-0.0670 ± 0.0041"),
    ],
)
def test_values_show_the_digits_that_their_error_allows(value, error, expected):
    assert tables.with_error(value, error) == expected


def test_table_has_one_line_per_model_and_marks_the_proposals(results):
    header, cells = tables.columns(results)
    names = [line[0] for line in cells]
    assert names[0] == "EDM"
    assert names[-1] == "VDM"
    assert len(names) == len(set(names)) == 12
    assert [name for name in names if name.endswith("★")] == ["merged, η = 0.200 ★", "merged, η = 0.300 ★"]
    ancestral = cells[names.index("merged, η = 0.400")][header.index("Fréchet, ancestral")]
    assert ancestral == "–"
    assert tables.markdown(results).count("\n") == len(cells) + 2


def test_terminal_ends_with_the_finding(results, capsys):
    tables.print_summary(results | {"finding": finding(results)}, console())
    printed = capsys.readouterr().out
    assert "1.907 ± 0.021" in printed
    assert printed.strip().endswith(finding(results))


def test_sample_grid_shows_every_pixel_at_its_grey_level():
    images = np.zeros((1, 2, 2, 2, 1), np.uint8)
    images[0, 1] = 16
    sheet = plots.sample_grid(images, ["row"], 17, zoom=3).axes[0].images[0].get_array()
    assert sheet.shape == (6, 15, 4)
    np.testing.assert_array_equal(sheet[:, :6, :3], 0.0)
    np.testing.assert_array_equal(sheet[:, 9:, :3], 1.0)
    np.testing.assert_array_equal(sheet[:, 6:9, 3], 0.0)  # the gap is transparent


def test_trade_off_draws_the_measured_values(results):
    top, bottom, plane = plots.trade_off(results).axes
    drawn = top.containers[0].lines[0].get_xydata()
    expected = [
        (r["eta"], r["bpd"]) for r in results["rows"] if r["eta"] is not None and r["sampler"] == "heun"
    ]
    np.testing.assert_allclose(drawn, expected)
    assert len(bottom.containers) == 2
    assert {"EDM", "VDM"} <= {text.get_text() for text in plane.texts}


def test_stacked_terms_end_at_their_sum(results):
    axis = plots.stacked_terms(results["terms"], "likelihood").axes[0]
    sums = next(line for line in axis.lines if line.get_marker() == "d").get_xdata()
    np.testing.assert_allclose(sums, 1.8)


def test_curves_with_gaps_are_drawn(results):
    figure = plots.error_curves(results["curves"], results["proposed"], results["gamma_range"])
    assert None in results["curves"]["experts"]["EDM"]
    positions = {round(float(line.get_xdata()[0]), 3) for line in figure.axes[0].lines}
    assert round(-7.864 + 0.2 * 16.628, 3) in positions


def test_drawing_leaves_the_users_matplotlib_alone(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    style.png(plots.trade_off(results), dpi=40)
    assert dict(matplotlib.rcParams) == before


def test_distances_are_paired_by_seed():
    """Stages of equal name have equal noise; a model that lacks a seed is compared over those it has."""
    from jaxmerge.tasks import summary

    def stage(edm, merged):
        scores = {"EDM": {"frechet": edm}} | ({"eta_0": {"frechet": merged}} if merged else {})
        return {"etas": [0.2], "scores": scores, "count": 1000}

    samples = {"floor": {}, "samples_heun_0": stage(0.4, 0.5), "samples_heun_1": stage(0.8, 1.1)}
    measured = {"samples": samples | {"samples_heun_2": stage(0.6, None), "samples_ode_0": stage(9.0, 1.0)}}
    common = {"model_a": ["merged", 0.2], "model_b": "EDM"}
    (entry,) = summary.paired_distance(measured, common, "heun", "frechet", (0.2, "eta_0"), (None, "EDM"))
    assert entry["n_seeds"] == 2
    np.testing.assert_allclose(entry["difference"], (0.1 + 0.3) / 2)
    np.testing.assert_allclose(entry["se"], np.std([0.1, 0.3], ddof=1) / np.sqrt(2))
    assert summary.paired_distance(measured, common, "ode", "frechet", (0.2, "eta_0"), (None, "EDM")) == []


def test_page_shows_seeds_reconstructions_and_costs(results):
    results["seeds"] = [
        {"model": "merged", "eta": 0.2, "sampler": "heun", "quantity": "inception_score", "n_seeds": 3}
        | {"mean": 9.912, "std": 0.054, "minimum": 9.87, "maximum": 9.97, "low": 9.78, "high": 10.05}
    ]
    entry = {"gamma": -4.0, "model": "VDM", "eta": None, "psnr": 31.25, "psnr_se": 0.11, "psnr_pooled": 30.5}
    entry |= {"exact": 0, "ssim": 0.951, "ssim_se": 0.002}
    results["reconstructions"] = {"entries": [entry], "definition": "noise & one call"}
    cost = {
        "model": "EDM",
        "eta": None,
        "latency": 0.0125,
        "latency_low": 0.012,
        "latency_high": 0.0131,
        "nfe": 35.0,
    }
    cost |= {"parameters": 55_700_000, "planned_bytes": 250 * 2**20}
    results["costs"] = {"entries": [cost], "definition": "wall seconds"}
    text = page.page(results, {})
    for shown in (
        "Inception score, heun",
        "9.78 to 10.05",
        "31.25 ± 0.11",
        "0.9510 ± 0.0020",
        "noise &amp; one call",
    ):
        assert shown in text
    for shown in ("12.5 [12, 13.1]", "55,700,000", "<td>250</td>", "wall seconds"):
        assert shown in text
    assert "LPIPS" not in text
    entry |= {"psnr": None, "psnr_se": None, "exact": 2}
    assert "∞ (2 exact)" in page.page(results, {})
    entry |= {"lpips": 0.0312, "lpips_se": 0.0011}
    assert "0.0312 ± 0.0011" in page.page(results, {})


def test_terminal_shows_the_papers_tables_and_what_differs(results, capsys):
    from jaxmerge.report import published

    entries = published.beside([{"model": "VDM", "eta": None, "bpd": 2.7}], 1, "cifar10")
    papers = [
        {"table": n, "data": "cifar10", "source": "s", "note": "Other weights.", "entries": entries}
        for n in (1, 5)
    ]
    config = {"report": {"published_note": "Other weights."}}
    tables.print_summary(results | {"published": papers, "config": config, "finding": "Done."}, console())
    printed = capsys.readouterr().out
    assert "Beside table 1 of s" in printed and "Beside table 5 of s" in printed
    assert printed.count("Other weights.") == 1


def test_remarks_are_shown_where_nothing_was_measured():
    text = page.page({"name": "figure", "rows": [], "notes": ["Other weights."], "finding": "Done."}, {})
    assert "<h2>Remarks</h2>" in text and "Other weights." in text and "Measured values" not in text


@pytest.mark.parametrize(("merges", "rows"), [(5, 5 + 2), (0, 9 + 2), (1, 1 + 2)])
def test_the_sample_figure_shows_as_many_merges_as_asked(merges, rows):
    from types import SimpleNamespace

    from jaxmerge.data import load
    from jaxmerge.tasks import summary

    etas = np.linspace(0.1, 0.9, 9)
    images = np.zeros((3, 8, 8, 1), np.uint8)
    models = ["EDM", "VDM", *(f"eta_{i}" for i in range(9))]
    stage = {"etas": etas, "pictures": dict.fromkeys(models, images)}
    measured = {"etas": list(etas), "samples": {"samples_ode_0_9x3": stage}}
    setup = SimpleNamespace(test=load("digits", "test"))
    found = summary.pictures(setup, measured, columns=2, merges=merges)
    assert found["samples"].shape == (rows, 2, 8, 8, 1) and len(found["sample_labels"]) == rows


def test_samples_are_drawn_where_there_are_fewer_real_images(results):
    samples = np.zeros((2, 5, 8, 8, 1), np.uint8)
    pictures = {"samples": samples, "sample_labels": np.array(["EDM", "VDM"])}
    alone = page.figures(results, pictures)["samples"]
    real = page.figures(results, pictures | {"data": np.zeros((3, 8, 8, 1), np.uint8)})["samples"]
    assert real.get_figheight() > alone.get_figheight()
