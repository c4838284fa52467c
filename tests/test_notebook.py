"""The notebook runs as it is committed, and what it shows is what it gives. `make notebook` brings it up to date."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "notebooks" / "diffusion_policy_step_by_step.ipynb"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> tuple[str, int]:
    """What a cell prints without its numbers, in which machines differ; and how many pictures it draws."""
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
    return " ".join(re.sub(r"not solved in|solved after|-?[\d.,]+", "#", text).split()), pictures


@pytest.mark.slow
def test_it_runs_and_shows_what_is_committed():
    committed = nbformat.read(FILE, as_version=4)
    executed = nbformat.read(FILE, as_version=4)
    client = NotebookClient(executed, timeout=1800, startup_timeout=120, kernel_name="python3")
    client.execute()  # an error, or an assert that does not hold, is raised here
    for cell, before in zip(code_cells(executed), code_cells(committed), strict=True):
        assert shown(cell) == shown(before), cell.source


def test_it_is_committed_whole_and_small():
    cells = code_cells(nbformat.read(FILE, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type if "name" not in output else output.name for cell in cells for output in cell.outputs}
    assert kinds == {"stdout", "display_data"}
    assert FILE.stat().st_size < 2_000_000


def test_its_links_lead_to_files_and_to_its_own_headings():
    texts = [cell.source for cell in nbformat.read(FILE, as_version=4).cells if cell.cell_type == "markdown"]
    headings = {line.lstrip("# ").replace(" ", "-") for text in texts for line in text.splitlines() if line[:1] == "#"}
    targets = re.findall(r"\]\((?!https:)([^)]+)\)", "\n".join(texts))
    assert len(targets) > 15
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (FILE.parent / target).is_file(), target
