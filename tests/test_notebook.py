"""The notebook runs from top to bottom, at a reduced size."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    return "".join(out.text for out in outputs if out.output_type == "stream" and out.name == "stdout")


def test_the_notebook_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_the_first_code_cell_installs_and_imports_only_what_every_python_has(notebook):
    first = code_cells(notebook)[0].source
    assert '"pip", "install"' in first
    assert "import jax" not in first


def test_the_notebooks_five_lines_are_the_readmes(notebook):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("```python\n")[1].split("```")[0]
    lines = [line for line in block.splitlines() if line and not line.startswith("import")]
    own = code_cells(notebook)[2].source.replace("IMAGES", "16")
    assert own.splitlines() == lines


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(notebook, monkeypatch):
    size = [cell for cell in code_cells(notebook) if "IMAGES = 48" in cell.source]
    assert len(size) == 1
    size[0].source = size[0].source.replace("IMAGES = 48", "IMAGES = 6")
    # The kernel imports this checkout, on the CPU.
    monkeypatch.setenv("PYTHONPATH", str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    said = printed(notebook)
    assert "6 samples, 36 network calls each" in said
    assert "6 test images: 1." in said
    assert "cautious choice η = 0." in said
    assert said.count("merged, η = ") == 3
    pictures = [
        out for cell in code_cells(notebook) for out in cell.outputs if "image/png" in out.get("data", {})
    ]
    assert len(pictures) == 3
