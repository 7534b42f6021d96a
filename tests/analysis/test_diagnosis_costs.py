import numpy as np
import pytest
from healthy_runs import healthy_run

from trpo_jax.analysis.diagnosis import describe, find_limit_warnings, find_warnings
from trpo_jax.analysis.diagnosis_costs import cost_notes

DONE = np.linspace(0, 1, 60)


def costly(cost, limit=5.0, algorithm="trpo_lag", suffix="", **columns):
    """Returns a healthy run in which every seed has the given cost."""
    run = healthy_run(algorithm, cost_limit=limit)
    metrics = {"cost_estimate": cost, "cost_excess": cost - limit, "episodic_cost": cost} | columns
    metrics = {
        name if name in ("cost_active", "cost_recovery") else name + suffix: np.broadcast_to(
            x, (3, 60)
        ).astype(float)
        for name, x in metrics.items()
    }
    return run._replace(metrics=run.metrics | metrics)


def test_a_run_that_keeps_its_limit_has_no_warning():
    falls = 4.9 + 6 * (DONE < 0.5)
    assert find_warnings(costly(falls, cost_multiplier=DONE)) == []
    assert find_warnings(costly(falls, algorithm="cpo", cost_active=1, cost_recovery=0)) == []


@pytest.mark.parametrize(
    ("algorithm", "columns", "why"),
    [
        ("trpo_lag", {"cost_multiplier": DONE}, "the price of the cost kept rising"),
        ("cpo", {"cost_active": 1, "cost_recovery": DONE > 0.5}, "late steps only lowered"),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_toll"])
def test_a_limit_that_no_policy_kept_gives_a_warning(algorithm, columns, why, suffix):
    run = costly(9 - 2 * DONE, algorithm=algorithm, suffix=suffix, **columns)
    for (warning,) in (find_warnings(run), find_limit_warnings(run)):
        cost = "cost toll" if suffix else "cost"
        assert warning.name == f"limit of the {cost} out of reach"
        assert warning.seeds == (7, 8, 9)
        said = f"no policy kept the limit: the lowest cost is 7, although {why}"
        assert said in describe(warning)


@pytest.mark.parametrize(
    ("cost", "columns"),
    [
        (9 - 2 * DONE, {"cost_multiplier": 1.0}),  # the price does not rise
        (np.where(DONE < 0.1, 4, 7), {"cost_multiplier": DONE}),  # some policies kept it
    ],
)
def test_a_cost_above_a_limit_within_reach_gives_another_warning(cost, columns):
    run = costly(cost, **columns)
    assert find_limit_warnings(run) == []
    (warning,) = find_warnings(run)
    assert warning.name == "cost above its limit"
    assert "raise --multiplier-lr" in describe(warning).lower()


def test_a_run_with_few_updates_has_no_warning_about_limits():
    run = costly(9 - 2 * DONE, cost_multiplier=DONE)
    short = run._replace(metrics={name: x[:, :9] for name, x in run.metrics.items()})
    assert find_limit_warnings(short) == []


def test_a_note_says_how_often_and_how_far_a_cost_was_above_its_limit():
    (note,) = cost_notes(costly(np.where(DONE < 0.25, 7.0, 4.0), cost_multiplier=DONE))
    assert note == (
        "The cost was above its limit in 25 % of the updates of all seeds, on average by 2."
    )
    assert cost_notes(healthy_run()) == []


@pytest.mark.parametrize(
    ("algorithm", "columns"), [("trpo_lag", {"cost_multiplier": 0}), ("cpo", {"cost_active": 0})]
)
def test_a_note_says_that_a_limit_was_never_active(algorithm, columns):
    (note,) = cost_notes(costly(0 * DONE + 1, algorithm=algorithm, **columns))
    assert note.startswith("The cost was above its limit in no update. The limit was never active")
