"""A sweep over the limit of a cost, and its figure."""

import csv

import numpy as np
import pytest

import trpo_jax
from trpo_jax.algorithms import cpo
from trpo_jax.envs.native import toll_road
from trpo_jax.errors import ConfigurationError
from trpo_jax.figures.sweeps import limits_figure
from trpo_jax.running.sweep_ranking import measured_with

CONFIG = cpo.Config(
    num_envs=4,
    num_steps=20,
    hidden_sizes=(4,),
    critic_epochs=1,
    critic_minibatches=1,
    cg_iters=1,
    line_search_steps=1,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "limits"
    options = {"seeds": 2, "total_steps": 160, "evaluation_episodes": 4, "progress": False}
    return trpo_jax.sweep(
        toll_road(), CONFIG, grid={"cost_limit": (8.0, 2.0)}, out=folder, **options
    )


@pytest.mark.slow
def test_the_results_of_a_sweep_have_costs(found):
    assert [row["cost_limit"] for row in found.results] == [8, 8, 2, 2]
    for row in found.results:
        assert 0 <= row["evaluation_cost"] <= 20
        assert 0 <= row["training_cost"] <= 20
    with (found.folder / "results.csv").open() as file:
        columns = next(csv.reader(file))
    assert columns[3:7] == [
        *("evaluation_return", "training_return", "evaluation_cost", "training_cost")
    ]
    again = trpo_jax.sweep(
        toll_road(),
        CONFIG,
        grid={"cost_limit": (8.0, 2.0)},
        out=found.folder,
        seeds=2,
        total_steps=160,
        evaluation_episodes=4,
        progress=False,
    )
    for row, other in zip(found.results, again.results, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_each_setting_is_judged_by_its_own_limit(found):
    assert {x.index: x.limits.tolist() for x in found.ranking} == {0: [8], 1: [2]}
    assert {x.index: x.excess for x in found.ranking} == pytest.approx(
        {x.index: max(0, x.costs["cost"].mean() - x.limits[0]) for x in found.ranking}
    )


@pytest.mark.slow
def test_each_run_of_a_program_has_its_own_limit(found):
    """In the first update, runs of the same seed differ only by the limit."""
    by_seed = [[row["kl"] for row in found.results if row["seed"] == seed] for seed in (0, 1)]
    assert all(len(set(values)) == 2 for values in by_seed)


@pytest.mark.slow
def test_the_figure_shows_return_against_cost(found):
    assert (found.folder / "return_against_cost.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = found.plot_costs().axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cost", "return")


def test_points_have_intervals_and_limits_are_lines():
    returns = np.array([[6.0, 7.0, 8.0], [2.0, 3.0, 4.0], [np.nan, 1.0, 1.0]])
    costs = {"cost": np.array([[8.0, 9.0, 10.0], [4.0, 5.0, 6.0], [1.0, 1.0, 1.0]])}
    (axes,) = limits_figure([9.0, 5.5, 1.0], returns, costs, "").axes
    line, *others = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[5, 3], [9, 7]])
    dashed = [x for x in others if x.is_dashed()]
    assert [x.get_xdata()[0] for x in dashed] == [5.5, 9]
    assert len(axes.containers) == 2


@pytest.mark.slow
def test_other_sweeps_have_no_figure_of_return_against_cost(found):
    other = found._replace(settings=[{"cost_limit": 5.0, "max_kl": 0.1}])
    with pytest.raises(ConfigurationError, match="over only cost_limit"):
        other.plot_costs()


def test_settings_are_ranked_within_the_limits_of_the_config(monkeypatch):
    returns, costs = (3.0, 2.0, 1.0), (9.0, 4.0, 5.0)

    def done(plan, compilation, pending, results, console):
        for index, seed in pending:
            values = dict.fromkeys(measured_with(plan.task.env.costs), 0.0)
            values |= {"evaluation_return": returns[index], "evaluation_cost": costs[index]}
            results[index, seed] = {"setting": index, "seed": seed, **values}

    monkeypatch.setattr("trpo_jax.running.sweep.run_compilation", done)
    options = {"grid": {"max_kl": (0.1, 0.2, 0.3)}, "seeds": 2, "total_steps": 160}
    ranking = lambda limit: (
        trpo_jax.sweep(
            toll_road(), CONFIG.replace(cost_limit=limit), **options, progress=False
        ).ranking
    )
    assert [x.index for x in ranking(5.0)] == [1, 2, 0]
    assert [x.index for x in ranking(9.0)] == [0, 1, 2]
    assert [x.excess for x in ranking(1.0)] == [3, 4, 8]
