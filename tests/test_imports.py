"""Tests that imports between the rooms go one way, and that importing the library is cheap."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

import trpo_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trpo_jax"

ROOMS = {  # the modules or packages in each room
    "base": {"errors", "installing", "user_modules"},
    "mathematics": {
        *("advantages", "confidence", "constraints", "control_variates"),
        *("distributions", "fisher"),
        *("kronecker", "line_search", "minibatches", "normalization"),
        *("replay", "sample_space", "solvers", "transform", "trust_region"),
    },
    "acting": {
        *("agent", "critics", "envs", "exploration", "host_rollout", "networks"),
        *("observing", "recurrent", "rollout", "teams", "vine"),
    },
    "algorithms": {"algorithms"},
    "processes": {"devices", "processes"},
    "records": {"records"},
    "analysis": {"analysis"},
    "figures": {"figures"},
    "running": {"running"},
    "cli": {"cli", "__main__"},
    "names": {"__init__"},  # the public names, which are imported lazily
}
MAY_IMPORT = {  # the rooms that a room may import, besides itself
    "base": set(),
    "mathematics": {"base"},
    "acting": {"base", "mathematics"},
    "algorithms": {"base", "mathematics", "acting"},
    "processes": {"base", "algorithms"},
    "records": {"base", "mathematics", "acting", "algorithms", "processes"},
    "analysis": {"base", "records"},
    "figures": {"base", "records", "analysis"},
    "running": {
        *("base", "mathematics", "acting", "algorithms", "processes", "records", "analysis"),
    },
    "cli": set(ROOMS),
    "names": set(),
}
INSIDE_FUNCTIONS = {"running": {"figures"}}  # allowed inside functions only

ONLY_IN = {  # packages that only some rooms may import
    "argparse": {"cli"},
    "platformdirs": {"cli"},
    "rich": {"cli", "running"},
    "psutil": {"running"},
    "PIL": {"figures", "running"},
    "matplotlib": {"figures"},
    "jax": set(ROOMS) - {"base", "analysis", "figures", "names"},
}
OPTIONAL = {"brax", "craftax", "envpool", "gymnasium", "gymnax", "highway_env", "jumanji", "mujoco"}
OPTIONAL |= {"mujoco_playground", "navix", "pgx", "tensorboardX", "wandb"}
OPTIONAL |= {"jaxmarl", "mpe2", "pettingzoo"}
OPTIONAL |= {"imageio_ffmpeg", "onnx"}

DISTRIBUTIONS = {"PIL": "pillow", "orbax": "orbax-checkpoint"}  # if the name differs

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module):
    found = [room for room, members in ROOMS.items() if module.split(".")[0] in members]
    assert found, f"{module} is in no room: add it to ROOMS"
    return found[0]


def imported(module):
    """Yields the full name of each import of a module, and whether it is inside a function."""
    tree = ast.parse(FILES[module].read_text())
    functions = (x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef))
    inside = {child for function in functions for child in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has an import that is not absolute"
            yield from ((f"{node.module}.{alias.name}", node in inside) for alias in node.names)


def imported_rooms(module):
    for name, inside in imported(module):
        if name.startswith("trpo_jax."):
            inner = name.removeprefix("trpo_jax.")
            if inner.startswith("__"):  # such as `__version__`
                continue
            yield room_of(inner), inside, name


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module):
    own = room_of(module)
    for room, inside, name in imported_rooms(module):
        allowed = {own, *MAY_IMPORT[own], *(INSIDE_FUNCTIONS.get(own, ()) if inside else ())}
        assert room in allowed, f"{module}, of {own}, imports {name}, of {room}"


def test_the_rules_themselves_go_one_way():
    seen = set()
    for room, others in MAY_IMPORT.items():
        assert room == "cli" or others <= seen
        seen.add(room)


@pytest.mark.parametrize("module", FILES)
def test_only_some_rooms_import_some_packages(module):
    for name, _ in imported(module):
        rooms = ONLY_IN.get(name.split(".")[0], set(ROOMS))
        assert room_of(module) in rooms, f"{module} imports {name}"


def test_an_optional_package_is_imported_in_one_file_only():
    files = defaultdict(set)
    for module in FILES:
        for name, _ in imported(module):
            files[name.split(".")[0]].add(module)
    several = {package: files[package] for package in OPTIONAL if len(files[package]) > 1}
    assert not several


def test_the_declared_dependencies_are_the_imported_packages():
    packages = {name.split(".")[0] for module in FILES for name, _ in imported(module)}
    packages -= {"trpo_jax", *sys.stdlib_module_names, *OPTIONAL}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert {DISTRIBUTIONS.get(name, name) for name in packages} == declared


STAGES = """
import json, sys
stages = {}
def stage(name):
    stages[name] = sorted({module.split(".")[0] for module in sys.modules} | set(sys.modules))
import trpo_jax
stage("trpo_jax")
from trpo_jax import algorithms, envs
envs.suite_of("gym/Hopper-v5"), algorithms.ALGORITHMS
stage("names")
import trpo_jax.cli.main
stage("command")
from trpo_jax.analysis import comparisons, diagnosis, groups, returns, statistics
stage("analysis")
for name in algorithms.ALGORITHMS:
    algorithms.get(name)
stage("algorithms")
envs.make("CartPole-v1")
stage("gymnax")
print(json.dumps(stages))
"""


@pytest.fixture(scope="module")
def modules_after():
    """Returns the modules that are imported after each stage of a process."""
    command = [sys.executable, "-c", STAGES]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return {stage: set(modules) for stage, modules in json.loads(output.stdout).items()}


@pytest.mark.parametrize("stage", ["trpo_jax", "names", "command"])
def test_importing_the_library_imports_nothing_heavy(modules_after, stage):
    heavy = {"jax", "flax", "optax", "gymnax", "matplotlib", "orbax", "numpy", "rich"}
    assert not heavy & modules_after[stage]


def test_the_analysis_needs_no_jax(modules_after):
    assert not {"jax", "flax", "optax", "matplotlib", "orbax"} & modules_after["analysis"]


def test_algorithms_import_no_environments_and_no_plotting(modules_after):
    assert not OPTIONAL & modules_after["algorithms"]
    assert not {"matplotlib", "seaborn", "pandas"} & modules_after["algorithms"]
    assert "jax" in modules_after["algorithms"]  # shows that the stages work


def test_making_a_gymnax_environment_imports_no_plotting(modules_after):
    assert not {"seaborn", "matplotlib.pyplot", "pandas"} & modules_after["gymnax"]
    assert "gymnax" in modules_after["gymnax"]


@pytest.mark.parametrize("name", trpo_jax.__all__)
def test_every_public_name_can_be_used(name):
    assert getattr(trpo_jax, name) is not None
    assert name in dir(trpo_jax)
    # A module of the same name would replace the public name when it is imported.
    assert not [*PACKAGE.glob(f"{name}"), *PACKAGE.glob(f"{name}.py")]


def test_the_public_names_are_sorted_and_other_names_are_errors():
    assert trpo_jax.__all__ == sorted(trpo_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        _ = trpo_jax.trane
