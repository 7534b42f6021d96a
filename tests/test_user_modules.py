"""Environments and algorithms of the user, by the names of their modules."""

import json
import sys

import pytest
from refusals import refusal

from trpo_jax import algorithms, envs
from trpo_jax.cli import compare, evaluate, render, sweep, train
from trpo_jax.errors import ConfigurationError
from trpo_jax.running.plan import plan_run

TASKS = """
import trpo_jax
from trpo_jax import make_env as suite

def make_env():
    return suite("CartPole-v1")

def broken():
    return helper()

def helper():
    return int("seven")

def needy(size):
    return suite("CartPole-v1")

def wrong():
    return 7

def misspelt():
    return suite("CartPole-v2")
"""
SMALL = ["--total-steps", "64", "--num-seeds", "1", "--num-envs", "2", "--num-steps", "16"]
SMALL += ["--hidden-sizes", "4", "--critic-epochs", "1", "--evaluation-episodes", "2", "--quiet"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into the current folder, and removes them from Python after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_an_environment_of_the_user_has_the_name_of_its_function(write):
    write(tasks=TASKS)
    env = envs.make("tasks:make_env")
    assert env.name == "tasks:make_env"
    assert env.time_limit == 500
    assert envs.suite_of("tasks:make_env") == ("", "tasks:make_env")
    assert envs.folder_of("tasks:make_env") == "tasks-make_env"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tasks:broken", r"'tasks:broken' cannot be made\. \S+tasks.py, line 12, in helper: Val"),
        ("tasks:needy", r"cannot be made\. \S+tasks.py: TypeError: needy\(\) missing 1 required"),
        ("tasks:wrong", r"wrong in \S+tasks.py returned int, not trpo_jax.Environment"),
        ("tasks:misspelt", r"Unknown environment 'CartPole-v2'. Did you mean CartPole-v1"),
        ("tasks:mak_env", r"Unknown function 'mak_env'. Did you mean make_env.*tasks.py"),
        ("task:make_env", r"Unknown module 'task'. Did you mean tasks.*current folder"),
        ("no-module:f", r"Unknown module 'no-module'"),
        ("syntax:f", r"'syntax' cannot be imported\. \S+syntax.py, line 2: SyntaxError: '\(' was"),
        ("raises:f", r"\S+raises.py, line 3, in <module>: ZeroDivisionError"),
        ("exits:f", r"\S+exits.py, line 1, in <module>: SystemExit: no"),
        ("lacks:f", r"\S+lacks.py, line 1, in <module>: ModuleNotFoundError.*no_such_module"),
        ("brax:ant", r"Unknown environment 'brax:ant'. Did you mean brax/ant\?"),
        ("gym/raises:Task-v0", r"\S+raises.py, line 3, in <module>: ZeroDivisionError"),
    ],
)
def test_an_error_in_an_environment_of_the_user_names_its_line(write, name, message):
    write(
        tasks=TASKS,
        syntax="\nx = (",
        raises="\n\n1 / 0",
        exits="raise SystemExit('no')",
        lacks="import no_such_module",
    )
    with pytest.raises(ConfigurationError, match=message):
        envs.make(name)


def test_gymnasium_finds_modules_in_the_current_folder(write):
    gymnasium = pytest.importorskip("gymnasium")
    write(
        hosted="""
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
gymnasium.register("Own-v0", CartPoleEnv, max_episode_steps=7)
"""
    )
    env = envs.make("gym/hosted:Own-v0")
    del gymnasium.registry["Own-v0"]
    assert (env.name, env.time_limit) == ("gym/hosted:Own-v0", 7)
    assert envs.folder_of(env.name) == "gym/hosted-Own-v0"


def test_an_environment_of_the_user_does_not_run_in_processes(write):
    write(tasks=TASKS)
    with pytest.raises(ConfigurationError, match=r"not 'tasks:make_env'. Leave --env-processes"):
        envs.make("tasks:make_env", processes=True)


OWN = "from trpo_jax.algorithms.trpo import Config, make\n"


def test_an_algorithm_of_the_user_has_the_name_of_its_module(write, tmp_path):
    write(own=OWN)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "trpo.py").write_text(OWN)
    assert algorithms.name_of(algorithms.get("own")) == "own"
    assert (
        algorithms.name_of(algorithms.get("package.trpo")) == "package.trpo"
    )  # not the name of TRPO
    assert algorithms.name_of(algorithms.get("trpo")) == "trpo"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpro", r"Unknown algorithm 'tpro'. Did you mean trpo.*my_module\.py"),
        ("../own", r"Unknown algorithm '\.\./own'"),
        ("package.own", r"Unknown algorithm 'package.own'"),
        ("empty", r"empty.py is no algorithm: it has no Config and no make"),
        ("half", r"half.py is no algorithm: it has no make\."),
        ("bare", r"bare.py: Config must be a frozen dataclass"),
        ("mute", r"mute.py: the field lr of Config says neither.*lr: float = fields.real"),
        ("raises", r"\S+raises.py, line 2, in <module>: NameError"),
    ],
)
def test_an_error_in_an_algorithm_of_the_user_names_its_file(write, name, message):
    make = "def make(env, config=None, *, agent=None): ...\n"
    write(
        empty="",
        half="class Config: ...\n",
        bare=f"class Config: ...\n{make}",
        mute=f"import flax\n@flax.struct.dataclass\nclass Config:\n    lr: float = 0.1\n{make}",
        raises="\nundefined",
    )
    with pytest.raises(ConfigurationError, match=message):
        algorithms.get(name)


def test_an_error_in_make_of_an_algorithm_of_the_user_names_its_line(write):
    write(own="from trpo_jax.algorithms.trpo import Config\n\ndef make(env, config):\n    1 / 0\n")
    message = r"'own' cannot be made. \S+own.py, line 4, in make: ZeroDivisionError"
    with pytest.raises(ConfigurationError, match=message):
        plan_run("CartPole-v1", algorithm="own")


@pytest.mark.slow
def test_every_script_takes_modules_of_the_user(write, tmp_path, capsys):
    write(tasks=TASKS, own=OWN)
    names = ["--env", "tasks:make_env", "--algorithm", "own"]
    assert train.main([*names, *SMALL]) == 0
    (run,) = (tmp_path / "runs" / "tasks-make_env" / "own").iterdir()
    description = json.loads((run / "config.json").read_text())
    assert (description["env"], description["algorithm"]) == ("tasks:make_env", "own")
    capsys.readouterr()
    assert evaluate.main([str(run), "--episodes", "3"]) == 0
    assert "OWN on tasks:make_env" in capsys.readouterr().out
    assert render.main([str(run), "--steps", "2"]) == 0
    words = ["--algorithms", "own", "--envs", "tasks:make_env", "--num-seeds", "1"]
    (pair,) = compare.plan(compare.parse([*words, "--out", "compared"]))
    assert pair.unsuitable is None
    assert pair.folder.parts == ("compared", "tasks-make_env", "own")
    grid = ["--grid", "max_kl=0.01,0.02", "--total-steps", "8192", "--out", "swept"]
    _, settings = sweep.parse_sweep([*names, *grid])
    assert settings["grid"] == {"max_kl": [0.01, 0.02]}
    assert settings["config"].max_kl == 0.01


@pytest.mark.parametrize("script", [train, sweep], ids=["train", "sweep"])
def test_scripts_refuse_a_broken_module_with_one_message(write, script, capsys):
    write(tasks=TASKS, raises="\n\n1 / 0")
    assert "tasks.py, line 12" in refusal(script.main, ["--env", "tasks:broken"], capsys)
    assert "raises.py, line 3" in refusal(script.main, ["--algorithm", "raises"], capsys)
