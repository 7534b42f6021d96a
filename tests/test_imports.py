"""The house keeps its walls: imports go one way, and importing the library is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trpo_jax"

# A module may import from its own layer and the ones before it.
LAYERS = (
    ("errors",),
    ("distributions", "envs.base", "minibatches"),
    (
        "fisher",
        "kronecker",
        "solvers",
        "line_search",
        "normalization",
        "networks",
        "envs",
        "replay",
        "minibatches",
    ),
    (
        "trust_region",
        "critic",
        "advantages",
        "rollout",
        "host_rollout",
        "control_variates",
        "vine",
        "exploration",
        "confidence",
    ),
    ("algorithms",),
    ("training",),
    ("",),  # trpo_jax/__init__.py
)
MODULES = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    for path in PACKAGE.rglob("*.py")
]


def layer(module):
    names = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
    for name in names:  # the most specific name decides
        for level, members in enumerate(LAYERS):
            if name in members:
                return level
    raise AssertionError(f"{module} belongs to no layer: add it to LAYERS")


def imported(module):
    path = PACKAGE / Path(*module.split(".")) if module else PACKAGE
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trpo_jax"):
            parent = node.module.removeprefix("trpo_jax").lstrip(".")
            for alias in node.names:
                child = f"{parent}.{alias.name}".lstrip(".")
                yield child if child in MODULES else parent
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("trpo_jax.")
                for alias in node.names
                if alias.name.startswith("trpo_jax.")
            )


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    for other in imported(module):
        assert layer(other) <= layer(module), f"{module or 'trpo_jax'} imports {other}"


MATHS = {"distributions", "fisher", "solvers", "line_search", "trust_region", "advantages"}
MATHS |= {"critic", "minibatches", "normalization", "control_variates", "confidence"}


@pytest.mark.parametrize("module", sorted(MATHS))
def test_the_maths_knows_no_environment_and_no_config(module):
    assert set(imported(module)) <= MATHS


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module):
    path = PACKAGE / Path(*module.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert not any(
        isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(ast.parse(text))
    )


def test_importing_the_library_imports_no_environment_suite():
    code = "import sys, trpo_jax, trpo_jax.algorithms; print(sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = ast.literal_eval(output.stdout)
    suites = {"gymnax", "gymnasium", "envpool", "brax", "mujoco", "mujoco_playground", "craftax"}
    suites |= {"jumanji", "pgx", "navix"}
    assert not (suites | {"seaborn", "matplotlib", "pandas"}) & set(modules)


def test_making_an_environment_of_gymnax_imports_nothing_for_drawing():
    code = "import sys; from trpo_jax import envs; envs.make('CartPole-v1')"
    code += "; print(sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"seaborn", "matplotlib.pyplot", "pandas"} & set(ast.literal_eval(output.stdout))
