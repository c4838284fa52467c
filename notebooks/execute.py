"""Executes the notebook and keeps what it shows: `make notebook`."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

FILE = Path(__file__).with_name("diffusion_policy_step_by_step.ipynb")

notebook = nbformat.read(FILE, as_version=4)
NotebookClient(notebook, timeout=600, record_timing=False, coalesce_streams=True).execute()
for cell in notebook.cells:
    if cell.cell_type == "code":  # warnings and progress are of this machine
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
nbformat.write(notebook, FILE)
