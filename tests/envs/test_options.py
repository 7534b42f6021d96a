"""Arguments and wrappers of environments in Python, on a command line and in `config.json`."""

import argparse
import json
import math

import gymnasium
import host_tasks  # noqa: F401
import jax
import numpy as np
import pytest

from trpo_jax import envs
from trpo_jax.cli.environment_flags import argument, options_from
from trpo_jax.cli.environments import make_stored
from trpo_jax.envs.options import name_of, parameters_of, parse_value, stored_options, text_of
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.resuming import differing_settings
from trpo_jax.running.plan import plan_run

OWN = """
from trpo_jax import make_env

def make_task(limit=10):
    return make_env("CartPole-v1")._replace(time_limit=limit)

def double(env):
    return env._replace(time_limit=2 * env.time_limit)

def broken(env):
    raise RuntimeError("the lid is\\n\\nstuck")

def nothing(env):
    return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of the user into the current folder, and returns its name."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    "value",
    [False, None, 3, -1e-05, "4x4", "5", "'5'", "False", "", " 5", (1, 2), [1, (2.0,)], {"a": [1]}],
)
def test_the_text_of_a_value_gives_the_value(value):
    assert parse_value(text_of(value)) == value
    assert type(parse_value(text_of(value))) is type(value)
    assert argument(f"name={text_of(value)}") == ("name", value)


@pytest.mark.parametrize("value", [np.float64(1), np.ones(2), [np.ones(2)], math.inf, print])
def test_a_value_without_a_text_has_none(value):
    assert text_of(value) is None


def test_a_wrapper_has_a_name_if_its_module_has_it():
    assert name_of("anything:at_all") == "anything:at_all"
    assert name_of(lambda env: env) is None
    wrapper = gymnasium.wrappers.FlattenObservation
    assert envs.options.user_modules.find("wrapper", name_of(wrapper))[0] is wrapper


def test_parameters_of_base_classes_count_if_a_class_passes_arguments_on():
    class Base:
        def __init__(self, a, *, b=1):
            pass

    class Derived(Base):
        def __init__(self, c=0, **kwargs):
            pass

    assert parameters_of(Base) == {"a", "b"}
    assert parameters_of(Derived) == {"a", "b", "c"}
    assert parameters_of(lambda x, /, y, *more, z: 0) == {"y", "z"}
    assert parameters_of(lambda **anything: 0) is None


@pytest.mark.parametrize(
    ("name", "args", "time_limit"),
    [
        ("CartPole-v1", {"max_steps_in_episode": 7, "gravity": 20}, 7),
        ("gym/CartPole-v1", {"max_episode_steps": 7}, 7),
        ("brax/inverted_pendulum", {"episode_length": 7, "backend": "generalized"}, 7),
        ("jumanji/Maze-v0", {"time_limit": 7}, 7),
        ("pgx/minatar-breakout", {"sticky_action_prob": 0.0}, None),
        ("envpool/CartPole-v1", {"max_episode_steps": 7}, 7),
    ],
)
def test_each_suite_takes_its_own_arguments(name, args, time_limit):
    suite = envs.suite_of(name)[0]
    pytest.importorskip({"gym": "gymnasium"}.get(suite, suite))
    assert envs.make(name, args).time_limit == time_limit
    *_, arg = args
    with pytest.raises(ConfigurationError, match=rf"Unknown argument of {name} '{arg}x'.*{arg}"):
        envs.make(name, {f"{arg}x": 1})


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "CartPole-v1",
            {"gravity": "low"},
            "gravity = 'low' of CartPole-v1 must be of",
        ),
        ("CartPole-v1", {"max_steps_in_episode": 7.5}, "must be of type int, such as .* 500"),
        ("gym/Counter-v0", {"render_mode": "human"}, "render_mode is not allowed"),
        ("gym/Counter-v0", {"long": 3}, "Unknown argument .*long.* Did you mean length"),
        ("CartPole-v1", {"gravity": True}, "must be of type float"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(name, args, message):
    with pytest.raises(ConfigurationError, match=message):
        envs.make(name, args)


def test_arguments_reach_the_environment():
    gravity = {g: envs.make("CartPole-v1", {"gravity": g}) for g in (9.8, 20.0)}
    shown = []
    for env in gravity.values():
        state, _ = env.reset(jax.random.key(0))
        shown.append(env.step(jax.random.key(0), state, 1)[1].observation)
    assert not np.array_equal(*shown)


def test_a_pool_is_made_with_arguments_and_wrappers():
    wrap = lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: 10 * reward)
    env = envs.make(
        "gym/Counter-v0", {"length": 2}, [wrap, "gymnasium.wrappers:FlattenObservation"]
    )
    pool = env.open(0, 2)
    pool.reset(np.ones(2, bool))
    results = [pool.step(np.full(2, 3)) for _ in range(2)]
    pool.close()
    np.testing.assert_array_equal(results[0].reward, 30)
    assert [result.terminated.all() for result in results] == [False, True]


def test_a_wrapper_of_gymnasium_can_change_the_time_limit():
    wrap = lambda env: gymnasium.wrappers.TimeLimit(env, 3)
    assert envs.make("gym/Counter-v0", {}, [wrap]).time_limit == 3


def test_wrappers_are_applied_in_order_and_keep_the_name(own):
    less = lambda env: env._replace(time_limit=env.time_limit - 1, name="another")
    env = envs.make(f"{own}:make_task", {"limit": 4}, [f"{own}:double", less])
    assert (env.name, env.time_limit) == (f"{own}:make_task", 7)
    assert envs.make(f"{own}:make_task", {"limit": 4}, [less, f"{own}:double"]).time_limit == 6
    with pytest.raises(ConfigurationError, match=r"Unknown argument .*limt.*Did you mean limit"):
        envs.make(f"{own}:make_task", {"limt": 4})


@pytest.mark.parametrize("name", ["CartPole-v1", "gym/Counter-v0"])
def test_a_wrapper_that_cannot_work_is_refused(own, name):
    for wrappers, message in (
        ([f"{own}:broken"], r"failed for .*in broken: RuntimeError: the lid is stuck"),
        ([f"{own}:nothing"], r"must return a .*returned NoneType"),
        ([f"{own}:doubel"], r"Unknown function 'doubel'. Did you mean double"),
        (["no_such_module:double"], r"Unknown module 'no_such_module'.*current folder"),
        (["double"], r"wrapper 'double' does not name its module"),
        ([3], r"wrapper 3 must be a function"),
        ("double", r"wrappers = 'double' must be a list"),
    ):
        with pytest.raises(ConfigurationError, match=message) as refused:
            envs.make(name, {}, wrappers)
        assert "\n" not in str(refused.value)


def flags(*words, env=None):
    arguments = [argument(word) for word in words if "=" in word]
    wrappers = [word for word in words if "=" not in word]
    others = {"env_timeout": None, "observe_previous": False, "cost": []}
    return argparse.Namespace(env=env, env_arg=arguments, wrapper=wrappers, **others)


def test_a_stored_run_is_made_again_with_the_same_options(own, tmp_path):
    options = options_from(flags("limit=4", f"{own}:double"))
    plan = plan_run(f"{own}:make_task", env_args=options.args, wrappers=options.wrappers)
    assert plan.env.time_limit == 8
    description = json.loads(json.dumps(plan.description))
    assert description["env_args"] == {"limit": "4"}
    assert {"--env-arg=limit=4", f"--wrapper={own}:double"} < {*description["command"]}
    assert make_stored(description, flags()).time_limit == 8
    assert make_stored(description, flags("limit=5")).time_limit == 10
    assert make_stored(description, flags(env="CartPole-v1")).time_limit == 500
    assert stored_options({"env": "CartPole-v1"}) == envs.Options(processes=False)


def test_a_timeout_is_stored_and_can_change_when_a_run_is_resumed():
    plan = plan_run("gym/CartPole-v1", env_timeout=7.5)
    assert plan.description["env_timeout"] == 7.5
    assert "--env-timeout=7.5" in plan.description["command"]
    assert stored_options(plan.description).timeout == 7.5
    assert not differing_settings(plan.description, plan_run("gym/CartPole-v1").description)
    for env in ("CartPole-v1", envs.make("CartPole-v1")):
        with pytest.raises(ConfigurationError, match=r"env_timeout = 7.5 .* not run on the host"):
            plan_run(env, env_timeout=7.5)


def test_a_run_with_an_option_without_a_name_has_no_command_and_is_refused():
    plan = plan_run("CartPole-v1", wrappers=[lambda env: env._replace(time_limit=9)])
    assert plan.env.time_limit == 9
    assert plan.description["command"] is None
    with pytest.raises(ConfigurationError, match=r"'CartPole-v1' of this run.*cannot store: wrapp"):
        make_stored(plan.description, flags())
    with pytest.raises(ConfigurationError, match=r"need an environment that is given by its n"):
        plan_run(plan.env, env_args={"gravity": 1.0})


@pytest.mark.parametrize("text", ["is_slippery", "=3", "is_slippery=false", "x=none"])
def test_a_malformed_env_arg_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"form NAME=VALUE|as in Python"):
        argument(text)
