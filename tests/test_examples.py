"""The examples in docstrings run and print what they say, and every public name has one."""

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import trpo_jax
from trpo_jax import algorithms

PACKAGE = Path(trpo_jax.__file__).parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
REFERENCE = (PACKAGE.parent / "docs/api/pieces.md").read_text(encoding="utf-8")
PIECES = re.findall(r"^::: trpo_jax\.(\w+)$", REFERENCE, re.MULTILINE)
COMMON = {"jax": jax, "jnp": jnp, "optax": optax, "trpo_jax": trpo_jax}  # the site says so


def docstrings(path):
    """Yields the name, the line and the docstring of a file and of all that it defines."""
    tree = ast.parse(path.read_text())
    stack = [("", tree)]
    while stack:
        prefix, node = stack.pop()
        yield prefix, getattr(node, "lineno", 0), ast.get_docstring(node) or ""
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{prefix}.{child.name}".lstrip(".")
                if isinstance(child, ast.ClassDef):
                    stack.append((name, child))
                else:
                    yield name, child.lineno, ast.get_docstring(child) or ""


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_examples_print_what_they_say(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a run
    module = import_module(module_name(path))
    for name, line, text in docstrings(path):
        test = doctest.DocTestParser().get_doctest(
            text, COMMON | vars(module), name, str(path), line
        )
        result = doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(test)
        assert result.failed == 0, f"{path}: the example of {name or 'the module'}"


def owner(name):
    """Returns the file that defines a public name, and its name there ("" for a module)."""
    module, attribute = trpo_jax._LAZY[name]
    if name in algorithms.ALGORITHMS:
        return PACKAGE / "algorithms" / f"{name}.py", "make"
    return Path(import_module(module).__file__), attribute


@pytest.mark.parametrize("name", trpo_jax.__all__)
def test_every_public_name_has_an_example(name):
    path, attribute = owner(name)
    examples = {name: ">>> " in text for name, _, text in docstrings(path)}
    assert examples[attribute], f"{attribute} in {path}"


@pytest.mark.parametrize("piece", PIECES)
def test_every_function_of_a_piece_has_an_example(piece):
    path = PACKAGE / f"{piece}.py"
    examples = {name: ">>> " in text for name, _, text in docstrings(path)}
    body = ast.parse(path.read_text()).body
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    public = [name for name in functions if not name.startswith("_")]
    assert all(examples[name] for name in public), [name for name in public if not examples[name]]
