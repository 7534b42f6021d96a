"""Tests that the notebooks install the library, run, and name no machine in their outputs.

The heavy tests execute every notebook in full: `pytest -m heavy tests/test_notebooks.py`.
"""

import ast
import inspect
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.heavy
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_most_of_its_cells_show_output(path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compilation takes most of the time
    monkeypatch.delenv("MPLBACKEND", raising=False)  # with it, a kernel shows no picture
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    _install, *code = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2


def of_library(node, names):
    """Returns the object of a name such as `trpo.Config`, or None if it is not of the library."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    owner = of_library(node.value, names) if isinstance(node, ast.Attribute) else None
    return getattr(owner, node.attr) if inspect.ismodule(owner) else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_names_and_arguments_that_the_library_has(path):
    cells = [x.source for x in nbformat.read(path, as_version=4).cells if x.cell_type == "code"]
    code = re.sub(r"^( *)%.*", r"\1pass", "\n".join(cells), flags=re.MULTILINE)
    nodes, names = list(ast.walk(ast.parse(code))), {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom) and "trpo_jax" in ast.unparse(node):
            exec(ast.unparse(node), names)
    calls = [(of_library(x.func, names), x) for x in nodes if isinstance(x, ast.Call)]
    calls = [(function, call) for function, call in calls if function]
    assert len(calls) >= 5
    for function, call in calls:
        parameters = inspect.signature(function).parameters
        given = {x.arg for x in call.keywords if x.arg}
        if "VAR_KEYWORD" not in {x.kind.name for x in parameters.values()}:
            assert given <= set(parameters), ast.unparse(call)


def test_every_notebook_installs_the_library_in_the_same_way():
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    cells = [next(x.source for x in book.cells if x.cell_type == "code") for book in notebooks]
    common = [cell.partition('\nif find_spec("sklearn")')[0] for cell in cells]  # 07 has more
    assert len({re.sub(r"\[[\w,]+\]", "", cell) for cell in common}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_name_no_folder_of_a_machine(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [x.get("text", x.get("data", {}).get("text/plain")) for x in outputs]
    assert not re.findall(r"/(?:home|root|tmp|work|usr|Users)/|site-packages", str(texts))
