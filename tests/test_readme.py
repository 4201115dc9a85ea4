"""The README's code runs as it stands, and its figures are those of the committed report."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.report import tables

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    "pip install -e . && python main.py --config configs/digits_merge.py",
    "pip install -e '.[test]' && python -m pytest",
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_two_commands_stand_in_one_block_and_nowhere_else():
    assert "\n".join(COMMANDS) + "\n" in blocks("")
    for line in COMMANDS:
        assert README.count(line) == 1


def test_the_continuous_integration_finds_exactly_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text()
    program = re.search(r"awk '(.*?)' README\.md", script, re.DOTALL)[1]
    found = subprocess.run(
        ["awk", program, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == COMMANDS


def test_the_five_lines_load_merge_sample_and_score():
    code = blocks("python")[0]
    lines = [line for line in code.splitlines() if line and not line.startswith("import")]
    assert len(lines) == 5
    names = {}
    exec(code, names)
    assert names["samples"].shape == (16, 8, 8, 1)
    assert names["samples"].dtype == np.uint8
    assert int(names["samples"].max()) == 16
    assert np.all(np.asarray(names["nfe"]) == 36)
    assert names["result"].bpd.shape == (16,)
    assert np.all(np.asarray(names["result"].ok))
    # 17 grey levels cost log2(17) = 4.09 bits without a model; these experts need less than half of that.
    assert 1.0 < float(names["result"].bpd.mean()) < 2.0


@pytest.mark.slow
def test_the_lines_that_choose_a_threshold_run_after_them():
    import jax

    import jaxmerge

    vdm, edm = jaxmerge.shipped("digits_vdm"), jaxmerge.shipped("digits_edm")
    names = {"jax": jax, "jaxmerge": jaxmerge, "vdm": vdm, "edm": edm}
    exec(blocks("python")[1], names)
    lowest, highest = jaxmerge.eta_range(vdm, edm)
    assert lowest <= names["proposal"].cautious <= names["proposal"].best <= highest
    assert names["proposal"].merge


def test_the_results_are_those_of_the_committed_report():
    results = json.loads((ROOT / "docs" / "digits_merge" / "results.json").read_text())
    section = README.split("<!-- results -->")[1].split("<!-- end of results -->")[0]
    assert tables.markdown(results) in section
    assert results["finding"] in section.replace("\n> ", " ").replace("\n", " ")


@pytest.mark.parametrize("text", ["README.md", "docs/architecture.md", "docs/method.md", "docs/data.md"])
def test_links_and_pictures_lead_somewhere(text):
    page = ROOT / text
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing
