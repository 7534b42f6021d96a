"""The page docs/metrics.md names every number that a run writes, and no other."""

import csv
import json
import re
from pathlib import Path
from types import ModuleType

import jax
import jaxtyping
import numpy as np
import probes
import pytest

import trpo_jax
from trpo_jax import algorithms
from trpo_jax.algorithms import ppo_lag
from trpo_jax.envs.base import cost_metrics
from trpo_jax.envs.costs import with_cost
from trpo_jax.records.logs import PLACE_COLUMNS
from trpo_jax.rollout import episode_metrics
from trpo_jax.running.sweep_ranking import Ranked, measured_with, summarize, write_ranking

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
SMALL = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (4,), "critic_minibatches": 2}
OWN = {"policy_minibatches": 2, "num_states": 4, "q_minibatch": 4}
ALL = ", ".join(f"`{name}`" for name in algorithms.ALGORITHMS)
OF_EACH = ("episodic_cost", "evaluation_cost", "training_cost", "cost_excess", "mean_cost")


@pytest.fixture(autouse=True, scope="module")
def shapes_unchecked():
    """Other tests check the shapes, and this halves the time of these."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def small_config(name, **settings):
    config = algorithms.get(name).Config()
    own = {field: x for field, x in (SMALL | OWN | settings).items() if hasattr(config, field)}
    return config.replace(**own)


def section(title):
    """Returns the text below a heading of the page, until the next heading of its level."""
    level = "#" * (len(title) - len(title.lstrip("#")))
    _, below = (PAGE.read_text() + "\n").split(f"\n{title}\n")
    return re.split(rf"\n{level} ", below)[0]


def named(text):
    """Returns the names in the first cells of the tables of a text."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(.+?)`", cell)}


def metrics_on_the_page():
    """Returns the names of metrics by algorithm, as the page says."""
    text = section("## The columns of `metrics.csv`")
    found = {name: set() for name in algorithms.ALGORITHMS}
    for part in re.split(r"^Algorithms: ", text, flags=re.MULTILINE)[1:]:
        head, _, table = part.partition(".\n")
        for name in re.findall(r"`(\w+)`", head.replace("all", ALL)):
            found[name] |= named(re.split(r"^#", table, flags=re.MULTILINE)[0])
    return found


def metrics_of(name):
    """Returns the names of the columns that a run of an algorithm writes."""
    env = probes.fit_for(name, probes.action_from_observation(continuous=True))
    env = env if env.costs else with_cost(env, "cost", lambda observation, action: 0.5)
    algorithm = algorithms.get(name).make(env, small_config(name, normalize_observations=False))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    _, metrics = jax.eval_shape(algorithm.update, state)
    return {*PLACE_COLUMNS, *(re.sub(r"_agent_\d+$", "_agent_<i>", x) for x in metrics)}


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_the_page_names_the_metrics_of_each_algorithm_and_no_others(name):
    assert metrics_on_the_page()[name] == metrics_of(name)


def test_every_algorithm_of_the_page_exists():
    listed = re.findall(r"^Algorithms: (.+?)\.$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {name for text in listed for name in re.findall(r"`(\w+)`", text)}
    assert found <= set(algorithms.ALGORITHMS)


def test_the_page_says_how_the_metrics_of_several_costs_are_named():
    for metric in OF_EACH:
        assert cost_metrics(("a", "b"), metric) == (f"{metric}_a", f"{metric}_b")
        assert f"`{metric}_<name>`" in PAGE.read_text()


def make_idle(env, config, *, agent=None):
    """Returns an algorithm with limits that learns nothing, since only its files matter."""
    made = ppo_lag.make(env, config, agent=agent)

    def improve(state, trajectory):
        state = state._replace(num_updates=state.num_updates + 1)
        return state, (), episode_metrics(trajectory, env.costs)

    return made._replace(improve=improve, fit=lambda critic, fit_input: (critic, {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of a run with costs, a limit, evaluations, a schedule and an argument."""
    out = tmp_path_factory.mktemp("run") / "run"
    idle = ModuleType("idle")
    idle.Config, idle.make = ppo_lag.Config, make_idle
    trpo_jax.train(
        "native/TollRoad",
        small_config("ppo_lag", normalize_observations=False),
        algorithm=idle,
        seeds=2,
        total_steps=64,
        evaluation_episodes=2,
        eval_every=1,
        schedules={"cost_limit": "linear:5:2"},
        env_args={"length": 4},
        checkpoint_every=0,
        out=out,
        progress=False,
    )
    return out


def columns_of(path):
    with path.open() as file:
        return set(next(csv.reader(file)))


@pytest.mark.slow
def test_the_page_names_the_columns_of_the_files_of_a_run(folder):
    own = {"cost_limit", "episodic_return", "episodic_cost", "episode_length"}
    own |= {"num_episodes", "broken_episodes"}
    assert columns_of(folder / "metrics.csv") == own | set(PLACE_COLUMNS)
    evaluations = named(section("## The columns of `evaluations.csv`"))
    assert columns_of(folder / "evaluations.csv") == evaluations | set(PLACE_COLUMNS)


@pytest.mark.slow
def test_the_page_names_the_keys_of_the_files_of_a_run(folder):
    config = json.loads((folder / "config.json").read_text())
    page, sometimes = named(section("### `config.json`")), {"wrappers", "costs", "env_timeout"}
    assert set(config) == page - sometimes
    assert sometimes < page
    summary = json.loads((folder / "summary.json").read_text())
    text, _, of_evaluation = section("### `summary.json`").partition("| key of `evaluation`")
    assert set(summary) == named(text)
    assert set(summary["evaluation"]) == named(of_evaluation)
    (costs,) = re.findall(r"^\| `costs` \| (.*)$", of_evaluation, re.MULTILINE)
    assert set(summary["evaluation"]["costs"]["toll"]) == set(re.findall(r"`(\w+)`", costs))


def test_the_page_names_the_columns_of_the_files_of_a_sweep(tmp_path):
    text, _, of_ranking = section("## The files of a sweep").partition("| column of `settings.csv`")
    results = text.partition("| column of `results.csv`")[2]
    assert named(results) == {"setting", "seed", *measured_with(("cost",))}
    scores, costs = np.array([1.0, 2.0, 3.0]), {"cost": np.ones(3)}
    ranked = Ranked(0, {"gamma": 0.9}, scores, summarize(scores), costs, np.array([0.5]))
    write_ranking(tmp_path / "settings.csv", [ranked])
    assert columns_of(tmp_path / "settings.csv") - {"gamma"} == named(of_ranking)


def test_the_page_names_the_files_of_a_run(folder):
    page = named(section("## The files of a run").partition("\n### ")[0])
    assert {path.name for path in folder.iterdir()} <= page
