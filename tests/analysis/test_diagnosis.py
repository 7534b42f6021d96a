import re
from dataclasses import fields

import numpy as np
import pytest
from healthy_runs import healthy_run

from trpo_jax import algorithms
from trpo_jax.analysis.diagnosis import CHECKS, describe, find_warnings, remedies
from trpo_jax.records.logs import LEADING_COLUMNS
from trpo_jax.trust_region import TrustRegionInfo

NAN = np.nan
DONE = np.linspace(0, 1, 60)


def spoilt(run, **columns):
    """Returns a run with these columns replaced for seed 8."""
    metrics = {name: values.copy() for name, values in run.metrics.items()}
    for name, values in columns.items():
        metrics[name][1] = values
    return run._replace(metrics=metrics)


def only(run):
    """Returns the only warning about a run."""
    (warning,) = find_warnings(run)
    return warning


def share(wanted):
    """Returns 60 zeros and ones, with the wanted share of ones, evenly spread."""
    return np.diff(np.floor(np.arange(61) * wanted + 1e-9))


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
def test_a_healthy_run_has_no_warnings(algorithm):
    assert find_warnings(healthy_run(algorithm)) == []


def test_small_steps_are_healthy_with_a_penalty():
    run = healthy_run(max_kl=0.01, kl_penalty=8.0)
    run.metrics["kl"] /= 50
    run.metrics["kl_max"] /= 2
    assert find_warnings(run) == []
    run.description["config"]["kl_penalty"] = 0.0
    assert {x.name for x in find_warnings(run)} == {
        "KL far below its bound",
        "single states moved too far",
    }
    run.metrics["kl_penalty"] = np.full_like(run.metrics["kl"], 8.0)  # a schedule
    assert find_warnings(run) == []


NO_STEP = {"step_rejected": 1.0, "kl": 0.0, "kl_max": 0.0, "explained_variance": -1.0}
SPOILT = [
    ("no signal", {"reward_signal": 0.0, **NO_STEP}, "all rewards were the same"),
    ("steps always rejected", {"step_rejected": share(0.95)}, "95 % of the steps"),
    ("steps often rejected", {"step_rejected": share(0.5)}, "50 % of the steps"),
    ("CG residual high", {"cg_residual": 0.7}, "residual 0.7"),
    ("KL far below its bound", {"kl": 0.002}, "20 % of the bound"),
    ("KL above its bound", {"kl": 0.0105}, "reached 1.05 times"),
    ("single states moved too far", {"kl": 0.005, "kl_max": 1.0}, "is 200 times its mean"),
    ("gain not as predicted", {"surrogate_gain_ratio": 0.3}, "gained 0.3 times"),
    ("gain not as predicted", {"surrogate_gain_ratio": 3.0}, "gained 3 times"),
    (
        "entropy collapsed",
        {"entropy": 1.4 * 0.01**DONE, "episodic_return": np.tile([3.0, 5.0], 30)},
        "97.9 % of the entropy of the first update",
    ),
    (
        "entropy collapsed",
        {"entropy": -0.5 - 4 * DONE, "episodic_return": np.tile([3.0, 5.0], 30)},
        "336 % of the entropy of the first update",
    ),
    (
        "entropy grows without end",
        {"entropy": 1 + 3 * DONE},
        "252 % of the entropy of the first update",
    ),
    ("critic useless", {"explained_variance": -0.02}, "variance -0.02"),
    ("return fell", {"episodic_return": 100 - 200 * np.abs(DONE - 0.5)}, "below the best"),
    ("return fell", {"episodic_return": -100 * DONE}, "91.5 below the best"),
    ("no episode ended", {"episodic_return": NAN, "num_episodes": 0}, "0 episodes"),
]


@pytest.mark.parametrize(("name", "columns", "measured"), SPOILT)
def test_a_problem_of_one_seed_gives_one_warning_about_this_seed(name, columns, measured):
    warning = only(spoilt(healthy_run(), **columns))
    assert warning.name == name
    assert warning.seeds == (8,)
    assert warning.metric in columns
    assert measured in warning.measured
    assert warning.updates[1] == 60
    assert warning.updates[0] in (1, 41)


FINE = [
    {"step_rejected": share(0.15)},
    {"step_rejected": np.where(DONE < 0.5, 1.0, 0.0)},  # only the first half
    {"cg_residual": np.where(DONE < 0.5, 2.0, 0.4)},
    {"kl": 0.01},  # the bound itself
    {"kl": 0.003},
    {"kl_max": 0.9, "kl": 0.009},
    {"surrogate_gain_ratio": np.tile([0.1, 0.8, 2.5], 20)},  # the median is fine
    {"entropy": 0.01},
    {"entropy": 1.4 * 0.001**DONE},  # while the return rises
    {"entropy": 1 + 0.8 * DONE},
    {"entropy": np.where(DONE < 0.5, 1 + 6 * DONE, 3.5)},  # it stopped growing
    {"entropy": -0.5 + 0.4 * DONE},
    {"explained_variance": np.where(DONE < 0.5, -1.0, 0.5)},
    {"explained_variance": 0.0, "episodic_return": np.minimum(500, 1000 * DONE)},  # solved
    {"episodic_return": 100 * np.minimum(DONE, 1.6 - DONE)},  # a little less than the best return
    {"episodic_return": np.where(np.arange(60) % 5 == 0, 100 * DONE, NAN)},
    {"episodic_return": np.random.default_rng(1).normal(size=60)},  # learns nothing
]


@pytest.mark.parametrize("columns", FINE)
def test_unusual_but_healthy_numbers_give_no_warning(columns):
    counts = np.where(np.isnan(columns.get("episodic_return", np.ones(60))), 0.0, 4.0)
    assert find_warnings(spoilt(healthy_run(), num_episodes=counts, **columns)) == []


def test_the_kl_divergence_is_compared_with_the_bound_of_its_update():
    falling = healthy_run(decay_steps=60_000)
    bound = 0.01 * (1 - np.arange(60) / 60)
    every = {"kl": bound * np.ones((3, 1)), "kl_max": bound * np.ones((3, 1))}
    assert find_warnings(falling._replace(metrics=falling.metrics | every)) == []
    every["kl"] = np.full((3, 60), 0.007)
    beyond = only(falling._replace(metrics=falling.metrics | every))
    assert beyond.name == "KL above its bound"
    assert beyond.measured == "the KL divergence reached 42 times its bound"
    scheduled = healthy_run()
    every["max_kl"] = bound * np.ones((3, 1))
    beyond = only(scheduled._replace(metrics=scheduled.metrics | every))
    assert beyond.measured == "the KL divergence reached 42 times its bound"


@pytest.mark.parametrize("config", [{"max_kl_per_dimension": True}, {"uncertainty_exponent": 1.0}])
def test_an_unknown_bound_gives_no_warning(config):
    run = spoilt(healthy_run("ua_trpo", **config), kl=0.015)
    assert find_warnings(run) == []


def test_without_a_line_search_the_bound_may_be_exceeded_sometimes():
    run = healthy_run("npg")
    assert find_warnings(spoilt(run, kl=np.where(share(0.08), 0.05, 0.015))) == []
    warning = only(spoilt(run, kl=np.where(share(0.2), 0.05, 0.015)))
    assert warning.name == "KL far above its bound"
    assert "20 % of the updates went beyond 2 times" in warning.measured
    assert find_warnings(spoilt(healthy_run("npg", normalized_step=False), kl=0.05)) == []


def test_steps_of_length_0_do_not_count_as_rejected():
    run = healthy_run(decay_steps=30_000)
    columns = {"kl": 0.0, "kl_max": 0.0, "step_fraction": 0.0, "surrogate_gain_ratio": 0.0}
    metrics = {
        name: np.where(run.metrics["update"] > 30, value, run.metrics[name])
        for name, value in (columns | {"step_rejected": 1.0}).items()
    }
    metrics["kl"] = np.where(metrics["kl"] > 0, 0.007 * (1 - DONE * 59 / 30), 0.0)
    warning = only(run._replace(metrics=run.metrics | metrics))
    assert warning.name == "steps of length 0"
    assert warning.seeds == (7, 8, 9)
    assert "last 30 updates" in warning.measured


def test_a_warning_shows_the_lowest_and_the_highest_number_of_its_seeds():
    run = healthy_run()
    residual = np.array([[0.6], [0.1], [0.82]]) * np.ones(60)
    warning = only(run._replace(metrics=run.metrics | {"cg_residual": residual}))
    assert warning.seeds == (7, 9)
    assert warning.measured == "median relative residual 0.6 to 0.82"
    assert describe(warning) == (
        "seeds 7, 9, updates 41 to 60: median relative residual 0.6 to 0.82. The direction is "
        "far from the natural gradient: raise --cg-iters or --damping."
    )


def test_a_warning_lists_only_the_first_of_many_seeds():
    run = healthy_run(num_seeds=20)
    run.metrics["cg_residual"][:] = 0.7
    warning = only(run)
    assert len(warning.seeds) == 20
    assert describe(warning).startswith("seeds 7, 8, 9, 10, 11, 12, 13, 14 and 12 more, updates")


def test_a_run_with_few_updates_has_only_the_warning_that_it_is_short():
    run = healthy_run(num_updates=4)
    run.metrics["explained_variance"][:] = -1
    warning = only(run)
    assert warning.name == "too short to judge"
    assert warning.measured.startswith("the run has 4 updates")


def test_every_check_uses_metrics_that_exist():
    known = {*LEADING_COLUMNS, *TrustRegionInfo._fields, "explained_variance", "critic_loss"}
    known |= {"reward_signal", "kl_agent_0", "step_rejected_agent_0"}
    for check in CHECKS:
        assert set(check.metrics) <= known, check.name


@pytest.mark.parametrize("algorithm", algorithms.ALGORITHMS)
@pytest.mark.parametrize(
    "config",
    [{}, {"normalized_step": False}, {"gae_critic": "trust_region", "entropy_coef": 0.1}],
)
def test_advice_names_flags_that_the_algorithm_has(algorithm, config):
    known = {field.name for field in fields(algorithms.get(algorithm).Config)}
    run = healthy_run(algorithm, **{name: x for name, x in config.items() if name in known})
    for name, advice in remedies(run.description["config"]).items():
        flags = [flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", advice)]
        if name != "longer_steps" or "max_kl" in known:
            assert flags and set(flags) <= known, advice
