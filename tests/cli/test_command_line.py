import argparse
import dataclasses
import fnmatch
import tomllib

import gymnax
import jax
import numpy as np
import probes
import pytest

from trpo_jax import algorithms, envs
from trpo_jax.cli import command_line
from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    call_of,
    config_from,
    step_count,
    user_errors,
)
from trpo_jax.envs.specs import Box
from trpo_jax.envs.wrappers import NO_VELOCITY
from trpo_jax.running.defaults import DEFAULTS_FILE, defaults_for
from trpo_jax.running.description import flags_of

RUN_SETTINGS = {"total_steps", "num_seeds", "evaluation_episodes", "env_processes"}
OTHER_SUITES = ["brax/ant", "playground/CheetahRun", "gym/highway-fast-v0", "gym/parking-v0"]
OTHER_SUITES += ["envpool/Swimmer-v4", "envpool/Parking-v0", "velocity/Swimmer"]
OTHER_SUITES += ["driving/highway-v0", "native/TollRoad", "pettingzoo/mpe2.simple_spread_v3"]
OTHER_SUITES += ["jaxmarl/SMAX", "jaxmarl/HeuristicEnemySMAX"]
OTHER_SUITES += ["envpool/BigfishEasy-v0", "envpool/BigfishHard-v0"]
MUJOCO = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum")
MUJOCO += ("InvertedPendulum", "Pusher", "Reacher", "Swimmer", "Walker2d")
OTHER_SUITES += [f"gym/{task}-v5" for task in MUJOCO]
ATARI = ("BeamRider", "Breakout", "Enduro", "Pong", "Qbert", "Seaquest", "SpaceInvaders")
OTHER_SUITES += [f"envpool/{game}-v5" for game in ATARI]
CONTINUOUS_ONLY = {"qprop"}
RESTARTING = {"trpo_vine"}
BY_PYTHON = {"UV_RUN_RECURSION_DEPTH": "1", "UV_INTERNAL__PARENT_INTERPRETER": "python"}
TASKS = [*gymnax.registered_envs, *(f"{name}-NoVel" for name in NO_VELOCITY)]
TABLES = tomllib.loads(DEFAULTS_FILE.read_text())
SAME = TABLES.pop("same")


@pytest.mark.parametrize("algorithm", TABLES)
def test_every_default_is_a_field_of_a_matching_algorithm_and_every_pattern_matches(algorithm):
    matching = fnmatch.filter(algorithms.ALGORITHMS, algorithm)
    assert matching
    fields = {f.name for name in matching for f in dataclasses.fields(algorithms.get(name).Config)}
    for patterns, table in TABLES[algorithm].items():
        assert set(table) <= fields | RUN_SETTINGS
        for pattern in patterns.split("|"):
            assert fnmatch.filter([*TASKS, *OTHER_SUITES], pattern)


def test_tasks_that_several_suites_have_map_to_names_of_gymnax():
    assert {*SAME.values()} <= {*TASKS}


def test_the_prefix_gymnax_does_not_change_defaults():
    assert defaults_for("trpo", "gymnax/CartPole-v1") == defaults_for("trpo", "CartPole-v1")


@pytest.mark.parametrize(
    "environment",
    [
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "Pendulum-v1",
        "Breakout-MinAtar",
        "gym/Acrobot-v1",
        "gym/Pendulum-v1",
    ],
)
def test_the_defaults_make_every_algorithm(environment):
    env = envs.make(environment)
    for name in algorithms.ALGORITHMS:
        if name in CONTINUOUS_ONLY and not isinstance(env.action, Box):
            continue
        if name in RESTARTING and not env.restartable:
            continue
        config = parse(name, defaults_for(name, environment))
        algorithm = algorithms.get(name).make(probes.fit_for(name, env), config)
        assert algorithm.steps_per_update <= defaults_for(name, environment)["total_steps"]


@pytest.mark.parametrize(
    ("uv", "argv", "call"),
    [
        ({}, "experiments/sweep.py", "python experiments/train.py --seed 1"),
        ({"UV_RUN_RECURSION_DEPTH": "1"}, "experiments/plot.py", "uv run experiments/train.py"),
        (BY_PYTHON, "bin/trpo-jax", "python3 -m uv run trpo-jax train"),
        ({}, "bin/trpo-jax", "trpo-jax train --seed 1"),
        ({}, "trpo_jax/__main__.py", "python -m trpo_jax train --seed 1"),
    ],
)
def test_a_printed_command_begins_like_the_command_of_the_user(uv, argv, call, monkeypatch):
    for name in ("UV_RUN_RECURSION_DEPTH", "UV_INTERNAL__PARENT_INTERPRETER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in uv.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", [argv])
    assert call_of("train", ["--seed", "1"]).startswith(call)


@pytest.mark.parametrize("value", ["-1e-05", "-1", "-.5", "-2.E3"])
def test_a_negative_number_is_not_read_as_a_flag(value):
    config = parse("trpo", defaults_for("trpo", "CartPole-v1"), "--log-std-init", value)
    assert config.log_std_init == float(value)


@pytest.mark.parametrize("words", [["8", "16"], ["8x16"]])
def test_sizes_are_written_with_spaces_or_an_x(words):
    config = parse("trpo", defaults_for("trpo", "CartPole-v1"), "--hidden-sizes", *words)
    assert config.hidden_sizes == (8, 16)


def test_list_envs_prints_one_name_a_line(capsys):
    parser = Parser()
    add_name_flags(parser)
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(["--list-envs"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"CartPole-v1", "gym/CartPole-v1", "brax/ant", "jumanji/Snake-v1"} <= set(printed)
    assert all(" " not in line for line in printed)


def parse(name, defaults, *flags):
    """Returns the config of a command line with `--total-steps` and further flags."""
    parser = Parser()
    parser.add_argument("--total-steps", type=step_count, default=defaults["total_steps"])
    parser.set_defaults(algorithm=name)
    add_config_flags(parser, name, defaults)
    return config_from(parser.parse_args(flags))


def test_a_field_can_follow_a_setting_of_the_run():
    defaults = {"total_steps": 5_000, "decay_steps": "total_steps"}
    assert parse("ppo", defaults).decay_steps == 5_000
    assert parse("ppo", defaults, "--total-steps", "1e4").decay_steps == 10_000
    assert parse("ppo", defaults, "--total-steps", "1e4", "--decay-steps", "7").decay_steps == 7
    assert parse("ppo", defaults, "--decay-steps", "0").decay_steps == 0
    assert parse("ppo", defaults | {"decay_steps": 3}).decay_steps == 3


def test_later_tables_win():
    assert defaults_for("trpo", "CartPole-v1") == {
        "total_steps": 100_000,
        "num_seeds": 8,
        "evaluation_episodes": 64,
        "env_processes": False,
        "fisher_subsample": 4,
    }
    assert defaults_for("trpo", "Anything")["num_seeds"] == 4
    assert defaults_for("trpo", "Freeway-MinAtar")["total_steps"] == 2_000_000


@pytest.mark.parametrize(("text", "steps"), [("1e5", 100_000), ("20_000", 20_000), ("7", 7)])
def test_step_counts_can_be_written_in_several_ways(text, steps):
    assert step_count(text) == steps


@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "1e300", "many"])
def test_other_step_counts_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a whole number"):
        step_count(text)


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_compiled_programs_are_stored_in_the_cache_of_the_user_or_of_jax(
    named, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", named and str(tmp_path / named))
    try:
        command_line.cache_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / (named or "trpo_jax"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend 'cuda'\nmore")])
def test_a_missing_platform_gives_an_error_of_one_paragraph(error, monkeypatch, capsys):
    def devices():
        raise error

    monkeypatch.setattr("jax.devices", devices)
    with pytest.raises(SystemExit) as stop, user_errors():
        devices()
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: JAX finds no device: JAX_PLATFORMS = ")
    assert printed.count("\n") == 1
    monkeypatch.undo()
    with pytest.raises(type(error)), user_errors():
        raise error


def test_a_field_may_hold_several_numbers():
    limit = lambda *words: parse("trpo_lag", {"total_steps": 5}, *words).cost_limit
    assert limit() == 25.0
    assert limit("--cost-limit", "5") == 5.0
    assert limit("--cost-limit", "5", "-2.5", "--max-kl", "0.1") == (5.0, -2.5)
    for value in (5.0, (5.0, -2.5)):
        assert limit(*flags_of({"cost_limit": value})) == value
    assert list(flags_of({"cost_limit": np.array([5.0, 2.0])})) == ["--cost-limit", "5.0", "2.0"]
