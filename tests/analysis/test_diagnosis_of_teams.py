"""Warnings and panels about single agents of a team."""

import numpy as np
from healthy_runs import healthy_run

from trpo_jax.analysis.diagnosis import find_warnings
from trpo_jax.figures.diagnosis_panels import panels


def run_of_team(rejected):
    """Returns a healthy run of a team whose agents reject these shares of their steps."""
    run = healthy_run("hatrpo")
    shape = run.metrics["kl"].shape
    each = [np.arange(shape[1]) % 100 < 100 * share for share in rejected]
    each = [np.broadcast_to(x, shape).astype(float) for x in each]
    metrics = run.metrics | {"step_rejected": np.mean(each, axis=0)}
    for index, x in enumerate(each):
        metrics |= {f"step_rejected_agent_{index}": x, f"kl_agent_{index}": run.metrics["kl"]}
    return run._replace(metrics=metrics)


def names(run):
    return [warning.name for warning in find_warnings(run)]


def test_one_agent_that_often_rejects_its_steps_gives_a_warning():
    shape = np.ones((3, 60))
    run = run_of_team((0, 0))
    assert names(run) == []
    steps = {"step_rejected_agent_1": 0.3 * shape, "step_rejected": 0.15 * shape}
    (warning,) = find_warnings(run._replace(metrics=run.metrics | steps))
    assert warning.name == "steps of one agent often rejected"
    assert "30 % of the steps of one agent" in warning.measured
    steps = {f"step_rejected_agent_{x}": 0.5 * shape for x in (0, 1)} | {
        "step_rejected": 0.5 * shape
    }
    assert names(run._replace(metrics=run.metrics | steps)) == ["steps often rejected"]


def test_a_panel_shows_the_agents_with_the_largest_and_the_smallest_kl_divergence():
    run = run_of_team((0, 0))
    metrics = run.metrics | {"kl_agent_1": 0.1 * run.metrics["kl"]}
    (panel,) = [x for x in panels(run._replace(metrics=metrics)) if "kl_agent_0" in x.metrics]
    np.testing.assert_allclose(panel.lines["largest"], 10 * panel.lines["smallest"])
    assert panel.fine[0] == 0.0
    np.testing.assert_allclose(panel.fine[1], 0.01)
    assert not any("kl_agent_0" in x.metrics for x in panels(healthy_run()))
