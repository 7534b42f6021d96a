"""Tests what static type checkers see of the library. The heavy test runs pyright."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trpo_jax
from trpo_jax import algorithms

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trpo_jax"


def imports_in(tree):
    """Returns the module and the original name of each name that a tree imports."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_stub_has_the_same_names_as_the_lazy_imports():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    assert imports_in(tree) == trpo_jax._LAZY
    (names,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(names) == trpo_jax.__all__


def test_type_checkers_see_the_module_of_each_algorithm():
    tree = ast.parse(Path(algorithms.__file__).read_text())
    (seen, _) = (node for node in tree.body if isinstance(node, ast.If))
    assert imports_in(seen) == {name: (algorithms.__name__, name) for name in algorithms.ALGORITHMS}


def test_the_package_has_a_py_typed_file():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.heavy
def test_pyright_finds_only_the_expected_mistakes():
    pytest.importorskip("pyright", reason="uv sync")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
