"""Commands that install missing packages, for each way to install this package."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest

from trpo_jax import envs, installing
from trpo_jax.envs.gymnasium import PLUGINS
from trpo_jax.errors import ConfigurationError
from trpo_jax.installing import how_to_install, requirements
from trpo_jax.running.settings import SERVICES

ROOT = Path(__file__).parents[1]
EXTRAS = {
    *(suite for suite, packages in envs.SUITES.items() if packages),
    *SERVICES,
    "box2d",
    "onnx",
    "video",
}
EXTRAS |= {extra for _, extra in PLUGINS.values()}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Returns a function that imitates a way to install this package."""

    def install(project=False, uv=True, pip=True, notebook=False):
        (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
        prefix = tmp_path / ".venv" if project else tmp_path.parent / "elsewhere"
        prefix.mkdir(exist_ok=True)
        (prefix / "pyvenv.cfg").write_text("home = /usr\n" + "uv = 0.9\n" * project)
        monkeypatch.setattr(installing, "CHECKOUT", tmp_path)
        monkeypatch.setattr(sys, "prefix", str(prefix))
        monkeypatch.setattr(sys, "executable", str(prefix / "bin" / "python"))
        monkeypatch.setattr(shutil, "which", lambda word: f"/bin/{word}" if uv else None)
        spec = ModuleSpec("pip", None) if pip else None
        monkeypatch.setattr(installing, "find_spec", lambda name: spec)
        shell = SimpleNamespace(get_ipython=lambda: object() if notebook else None)
        monkeypatch.setitem(sys.modules, "IPython", shell)
        return tmp_path

    return install


def test_a_uv_project_is_synced_and_its_other_extras_are_kept(installed, monkeypatch):
    folder = installed(project=True)
    assert how_to_install("pgx") == f"uv sync --inexact --project {folder} --extra pgx"
    monkeypatch.chdir(folder)
    assert how_to_install("pgx") == "uv sync --inexact --extra pgx"
    installed(project=True, uv=False)
    assert how_to_install("pgx") == "python3 -m uv sync --inexact --extra pgx"
    installed(project=True, notebook=True)
    assert how_to_install("pgx") == "!uv sync --inexact --extra pgx"


def test_the_command_for_pip_names_the_requirements_of_the_extra(installed):
    installed()
    assert how_to_install("pgx") == f"{sys.executable} -m pip install 'pgx>=2.6'"
    assert shlex.split(how_to_install("driving"))[4:] == ["gymnasium>=1.1", "highway-env>=1.10"]
    installed(notebook=True)
    assert how_to_install("navix") == "%pip install 'navix>=4.0'"


def test_without_pip_the_command_is_uv_pip(installed):
    installed(pip=False)
    python = sys.executable
    assert how_to_install("pgx") == f"uv pip install --python {python} 'pgx>=2.6'"
    installed(pip=False, notebook=True)
    assert how_to_install("pgx") == f"!uv pip install --python {python} 'pgx>=2.6'"


def test_outside_the_repository_the_requirements_come_from_the_installed_package(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(installing, "CHECKOUT", tmp_path)
    lines = ["jax>=0.10", "pgx>=2.6; extra == 'pgx'"]
    lines += ["navix>=4.0; (python_version >= '3.12') and extra == \"navix\""]
    monkeypatch.setattr(installing, "requires", lambda name: lines)
    assert (requirements("pgx"), requirements("navix")) == (["pgx>=2.6"], ["navix>=4.0"])


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_that_a_message_names_exists(extra):
    assert requirements(extra)
    assert not any("trpo_jax" in line for line in requirements(extra))


def test_the_extra_all_has_every_extra_that_fits_with_the_others():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {name for line in extras["all"] for name in re.findall(r"[\[,]([^],]+)", line)}
    assert named == set(extras) - {"all", "envs", "cuda12", "cuda13"}


def test_only_one_file_contains_commands_that_install():
    found = subprocess.run(
        ["grep", "-rnE", "uv sync|pip install", "--include=*.py", str(ROOT / "trpo_jax")],
        capture_output=True,
        text=True,
    ).stdout
    assert {Path(line.split(":")[0]).name for line in found.splitlines()} == {"installing.py"}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("ALE/Breakout-v5", "atari"),
        ("MiniGrid-Empty-5x5-v0", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid"),
        ("parking-v0", "driving"),
    ],
)
def test_the_error_for_a_missing_plugin_names_its_extra(name, extra, monkeypatch):
    adapter = importlib.import_module("trpo_jax.envs.gymnasium")
    monkeypatch.setattr(adapter.gymnasium, "registry", {"CartPole-v1": None})
    monkeypatch.setattr(adapter, "import_module", lambda name: None)
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    answer = rf"gym/{name}' needs the package .*: {re.escape(how_to_install(extra))}"
    with pytest.raises(ConfigurationError, match=answer):
        envs.make(f"gym/{name}")


def test_the_error_for_missing_box2d_names_its_extra(monkeypatch):
    adapter = importlib.import_module("trpo_jax.envs.gymnasium")

    def fail(name, **kwargs):
        error = "Box2D is not installed, you can install it by run `pip install swig`"
        raise adapter.gymnasium.error.DependencyNotInstalled(error)

    monkeypatch.setattr(adapter.gymnasium, "make", fail)
    answer = rf"Box2D is not installed. Install it with: {re.escape(how_to_install('box2d'))}$"
    with pytest.raises(ConfigurationError, match=answer):
        envs.make("gym/LunarLander-v3")
