"""Tests that imports between the rooms go one way, and that importing the library is cheap."""

import ast
import functools
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


@functools.cache
def imported(module):
    """Returns the full name of each import of a module, and whether it is inside a function."""
    return list(imports_in(module))


def imports_in(module):
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


PACKAGES = """
import sys
start = set(sys.modules)
def stage():
    names = sorted(set(sys.modules) - start)
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    return [sorted(name for name in packages if not name.startswith("_")), names]
"""
STAGES = (
    PACKAGES
    + """
import json
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
stages = {}
import trpo_jax
stages["trpo_jax"] = stage()
from trpo_jax import algorithms, envs
envs.suite_of("gym/Hopper-v5"), algorithms.ALGORITHMS
stages["names"] = stage()
from trpo_jax.cli.main import COMMANDS
for command in COMMANDS:
    with redirect_stdout(StringIO()), suppress(SystemExit):
        import_module(f"trpo_jax.cli.{command}_flags").parse(["--help"])
        raise AssertionError("the help did not end the command")
stages["help"] = stage()
from trpo_jax.analysis import comparisons, diagnosis, groups, returns, statistics
stages["analysis"] = stage()
for name in algorithms.ALGORITHMS:
    algorithms.get(name)
stages["algorithms"] = stage()
envs.make("CartPole-v1")
stages["gymnax"] = stage()
print(json.dumps(stages))
"""
)
# A state of zeros, and an algorithm that learns nothing, are compiled fast.
FIRST_UPDATE = (
    PACKAGES
    + """
import json, os
import trpo_jax
from trpo_jax.algorithms import trpo
import jax, jax.numpy as jnp
def stop(chunk):
    print(json.dumps({"first update": stage()}), flush=True)
    os._exit(0)
config = trpo.Config(num_envs=2, num_steps=2, critic_minibatches=1, hidden_sizes=(4,))
algorithm = trpo.make(trpo_jax.make_env("CartPole-v1"), config)
state = jax.eval_shape(algorithm.init, jax.random.key(0))
def zeros(key, x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jnp.full(x.shape, key) if is_key else jnp.zeros(x.shape, x.dtype)
algorithm = algorithm._replace(
    init=lambda key: jax.tree.map(lambda x: zeros(key, x), state),
    improve=lambda state, trajectory: (state, (), {}),
    fit=lambda critic, _: (critic, {}),
)
trpo_jax.train(algorithm=algorithm, seeds=1, total_steps=4, out=sys.argv[1], callback=stop)
"""
)
# Packages that a run needs before its first update is done, directly or through other packages. A
# new one slows every start.
NEEDED = {"jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy", "etils", "flatbuffers"}
NEEDED |= {"flax", "msgpack", "yaml", "rich", "pygments"}
NEEDED |= {"optax", "chex", "absl", "toolz"}
NEEDED |= {"jaxtyping", "wadler_lindig", "typing_extensions"}
NEEDED |= {"gymnax", "gymnasium", "farama_notifications", "cloudpickle"}
NEEDED |= {"psutil", "filelock", "cython_runtime"}


def stages_of(script, *arguments):
    """Returns the packages and the modules that are imported after each stage of a script."""
    command = [sys.executable, "-c", script, *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    stages = json.loads(output.stdout.splitlines()[-1])
    return {stage: tuple(map(set, found)) for stage, found in stages.items()}


shared = pytest.mark.xdist_group("imports")  # one worker, so that the script runs once


@pytest.fixture(scope="module")
def stages():
    return stages_of(STAGES)


@shared
@pytest.mark.parametrize("stage", ["trpo_jax", "names", "help"])
def test_the_library_and_the_help_of_each_command_import_no_other_package(stages, stage):
    packages, _ = stages[stage]
    assert packages == {"trpo_jax"}


@shared
@pytest.mark.slow
def test_the_analysis_needs_no_jax(stages):
    packages, _ = stages["analysis"]
    assert not {"jax", "flax", "optax", "matplotlib", "orbax"} & packages


@shared
def test_algorithms_import_no_environments_and_no_plotting(stages):
    packages, modules = stages["algorithms"]
    assert not OPTIONAL & packages
    assert not {"matplotlib", "seaborn", "pandas"} & packages
    assert "jax" in packages  # shows that the stages work
    assert "flax.nnx" not in modules


@shared
def test_a_gymnax_environment_imports_no_other_environment(stages):
    packages, modules = stages["gymnax"]
    assert not {"seaborn", "matplotlib", "pandas"} & packages
    own = "gymnax.environments.classic_control.cartpole"
    places = ("bsuite", "classic_control", "minatar", "misc")
    found = {name for name in modules if name.startswith("gymnax.") and name.count(".") > 2}
    assert found == {own}
    assert {f"gymnax.environments.{place}" for place in places} <= modules


def test_a_run_imports_only_known_packages_before_its_first_update(tmp_path):
    packages, _ = stages_of(FIRST_UPDATE, str(tmp_path / "run"))["first update"]
    assert packages - {"trpo_jax"} <= NEEDED


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
