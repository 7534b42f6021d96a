"""What the page about a run shows: one panel a sign, with a sentence on how to read it."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d

from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.analysis.diagnosis import CRITIC, GAIN_RATIO, REJECTED, RESIDUAL, remedies
from trpo_jax.analysis.diagnosis_costs import costs_of, excess_text
from trpo_jax.analysis.returns import WINDOW, running_return
from trpo_jax.records.runs import ONLY_COST, StoredRun, cost_columns

Limit = float | np.ndarray
# Metrics that a run may lack: an older one, or one of an algorithm of a user's own.
NAMES = {"episodic_return", "num_episodes", "kl", "kl_max", "surrogate_gain", "step_fraction"}
NAMES |= {"entropy", "explained_variance"}


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: what is shown, with its unit.
        metrics: the columns of `metrics.csv` that a warning about this panel is about.
        lines: values by label, each `[num_seeds, U]`.
        reading: how to read it, one sentence or two.
        fine: the lowest and the highest value where all is well, numbers or `[U]`; None if it
            depends.
        limits: of the axis; None for those of the data.
        log: whether the axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...]
    lines: dict[str, np.ndarray]
    reading: str
    fine: tuple[Limit, Limit] | None = None
    limits: tuple[float, float] | None = None
    log: bool = False


def panels(run: StoredRun) -> list[Panel]:
    """Returns the panels that a run has numbers for."""
    known = run.metrics.keys()
    missing = dict.fromkeys(NAMES - known, np.full(run.metrics["update"].shape, np.nan))
    drawn = _panels(run._replace(metrics=run.metrics | missing))
    return [panel for panel in drawn if known >= set(panel.metrics)]


def _panels(run: StoredRun) -> list[Panel]:
    metrics, advice = run.metrics, remedies(run.description["config"])
    shorter = advice["shorter_steps"]
    found = [
        Panel(
            f"Return, mean of {WINDOW} episodes or more",
            ("episodic_return", "num_episodes"),
            {"": running_return(metrics["episodic_return"], metrics["num_episodes"])},
            "Should rise and stay up. One that rises and falls again had steps too long for what "
            f"its batches tell: {shorter}, or let it fall over the run with --decay-steps.",
        ),
        _kl_panel(run, advice),
        *_agent_panels(run),
        _gain_panel(run, shorter),
    ]
    if "cg_residual" in metrics:
        residual = metrics["cg_residual"]
        found.append(
            Panel(
                "Relative residual of conjugate gradient",
                ("cg_residual",),
                {"": np.where(residual > 0, residual, np.nan)},
                "How far the direction is from solving its equation. Some tenths are common late "
                "in a run; near 1, it is no natural gradient: raise --cg-iters or --damping.",
                fine=RESIDUAL,
                log=True,
            )
        )
    if signs.has_line_search(run) and "step_rejected" in metrics:
        found += _line_search_panels(run)
    return [
        *found,
        *_cost_panels(run),
        Panel(
            "Entropy of the policy, nats",
            ("entropy",),
            {"": metrics["entropy"]},
            "Should fall as the policy makes up its mind, with the return rising meanwhile. If it "
            "falls before, raise --entropy-coef; if it grows without end, "
            f"{advice['less_entropy']}.",
        ),
        Panel(
            "Variance explained by the critic",
            ("explained_variance",),
            {"": metrics["explained_variance"]},
            "1 foresees every return, 0 none; below 0 does harm. Low also where a solved task "
            f"always returns the same. Otherwise {advice['better_critic']}.",
            fine=CRITIC,
            limits=(-0.6, 1.05),
        ),
    ]


def _cost_panels(run: StoredRun) -> list[Panel]:
    metrics, found = run.metrics, []
    with_limits = {costs.metric.removeprefix("cost_excess"): costs for costs in costs_of(run)}
    columns = cost_columns(metrics, order=run.description.get("cost_names", ()))
    for name, column in columns.items():
        costs = with_limits.get(column.removeprefix("episodic_cost"))
        lines = {"": running_return(metrics[column], metrics["num_episodes"])}
        reading, fine, shown_by = "It has no limit in this run.", None, (column,)
        if costs is not None:
            lines = {"episodes": lines[""], "estimate": costs.cost}
            limit = np.fmax.reduce(costs.cost - costs.excess)
            reading = f"Should end at the limit or below it (green). {excess_text(costs)}"
            fine, shown_by = (np.minimum(limit, 0.0), limit), (costs.metric,)
        title = "Cost of an episode" if name == ONLY_COST else f"Cost {name} of an episode"
        found.append(Panel(title, shown_by, lines, reading, fine))
    return found


def _kl_panel(run: StoredRun, advice: dict[str, str]) -> Panel:
    config, bound = run.description["config"], signs.kl_bound(run)
    lines = {"mean": signs.accepted(run, "kl"), "maximum": signs.accepted(run, "kl_max")}
    reading = (
        "The mean over states should end within the bound (green), not far from it. A maximum of "
        f"hundreds of times the mean moves rare states too far: {advice['lower_peak']}."
    )
    if bound is None:
        reading = (
            "Over the states of the batch. Nothing bounds it here: a jump is a step that was too "
            f"long for its batch ({advice['shorter_steps']})."
        )
        if config.get("max_kl_per_dimension"):
            reading = (
                "The bound is max_kl times the number of an action's components, which the run's "
                f"folder does not say. A maximum far above the mean: {advice['lower_peak']}."
            )
    fine = None if bound is None else (0.0, bound)
    return Panel("KL divergence, nats", ("kl", "kl_max"), lines, reading, fine, log=True)


def _agent_panels(run: StoredRun) -> list[Panel]:
    each = signs.of_agents(run, "kl")
    if not len(each):
        return []
    bound = signs.kl_bound(run)
    largest, smallest = (np.where(x > 0, x, np.nan) for x in (each.max(axis=0), each.min(axis=0)))
    return [
        Panel(
            "KL of single agents, nats",
            ("kl_agent_0",),
            {"largest": largest, "smallest": smallest},
            "Means over states. All agents should move. An agent that never does has its steps "
            "rejected (step_rejected_agent_...), or its actions change nothing.",
            None if bound is None else (0.0, bound),
            log=True,
        )
    ]


def _gain_panel(run: StoredRun, shorter: str) -> Panel:
    if "surrogate_gain_ratio" not in run.metrics:
        return Panel(
            "Gain of the surrogate",
            ("surrogate_gain",),
            {"": run.metrics["surrogate_gain"]},
            "What an update gained on its own batch. Around 0 it learns nothing; much more than "
            f"at the start is a step fitted to noise: {shorter}.",
        )
    return Panel(
        "Gain of the surrogate, actual over predicted",
        ("surrogate_gain_ratio",),
        {"": signs.accepted(run, "surrogate_gain_ratio")},
        "1 is what the gradient at the old policy promised. Well below, the surrogate is curved "
        f"over so long a step: {shorter}. Below 0, the step did harm.",
        fine=GAIN_RATIO,
        limits=(-0.5, 2.6),
    )


def _line_search_panels(run: StoredRun) -> list[Panel]:
    rejected = run.metrics["step_rejected"]
    window = max(5, rejected.shape[1] // 20)
    return [
        Panel(
            "Fraction of the full step that was accepted",
            ("step_fraction",),
            {"": signs.accepted(run, "step_fraction")},
            "1 is the step as its quadratic model has it. If mostly less, the model sees too small "
            "a KL divergence or too large a gain: raise --damping, or lower --max-kl.",
            limits=(0, 1.05),
        ),
        Panel(
            f"Share of rejected steps, over {window} updates",
            ("step_rejected",),
            {"": uniform_filter1d(rejected, window, axis=1, mode="nearest")},
            "Should be about 0: a rejected step wastes its batch. If not, lower --max-kl, raise "
            "--line-search-steps, or learn from larger batches (--num-steps).",
            fine=REJECTED,
            limits=(-0.03, 1.03),
        ),
    ]
