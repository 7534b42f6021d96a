"""The panels of the diagnosis page: each shows one sign and says how to read it."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d

from trpo_jax.analysis import WINDOW
from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.analysis.diagnosis import CRITIC, GAIN_RATIO, REJECTED, RESIDUAL, remedies
from trpo_jax.analysis.diagnosis_costs import costs_of, excess_text
from trpo_jax.analysis.returns import running_return
from trpo_jax.records.runs import ONLY_COST, StoredRun, cost_columns

Limit = float | np.ndarray
# Metrics that a run may lack, if it is old or if its algorithm is the user's own.
NAMES = {"episodic_return", "num_episodes", "kl", "kl_max", "surrogate_gain", "step_fraction"}
NAMES |= {"entropy", "explained_variance"}


class Panel(NamedTuple):
    """One panel of the page.

    Attributes:
        title: what the panel shows, with its unit.
        metrics: columns of `metrics.csv`. A warning about one of them marks the panel.
        lines: values by label, each `[num_seeds, U]`.
        reading: a few sentences on how to read the panel.
        fine: the lowest and the highest value that are fine, numbers or `[U]`; None if there is no
            such range.
        limits: limits of the vertical axis; None for the limits of the data.
        log: whether the vertical axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...]
    lines: dict[str, np.ndarray]
    reading: str
    fine: tuple[Limit, Limit] | None = None
    limits: tuple[float, float] | None = None
    log: bool = False


def panels(run: StoredRun) -> list[Panel]:
    """Returns the panels for which a run has metrics."""
    known = run.metrics.keys()
    missing = dict.fromkeys(NAMES - known, np.full(run.metrics["update"].shape, np.nan))
    drawn = _panels(run._replace(metrics=run.metrics | missing))
    return [panel for panel in drawn if known >= set(panel.metrics)]


def _panels(run: StoredRun) -> list[Panel]:
    metrics, advice = run.metrics, remedies(run.description["config"])
    shorter = advice["shorter_steps"]
    found = [
        Panel(
            f"Return: mean of the last {WINDOW} or more episodes",
            ("episodic_return", "num_episodes"),
            {"": running_return(metrics["episodic_return"], metrics["num_episodes"])},
            "The return should rise and stay high. If it falls again, the steps are too long: "
            f"{shorter}, or let it fall during the run with --decay-steps.",
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
                "The error of the direction. A few tenths are common late in a run. Near 1, the "
                "direction is not the natural gradient: raise --cg-iters or --damping.",
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
            "The entropy should fall while the return rises. If it falls before the return rises, "
            f"raise --entropy-coef. If it grows without end, {advice['less_entropy']}.",
        ),
        Panel(
            "Variance explained by the critic",
            ("explained_variance",),
            {"": metrics["explained_variance"]},
            "1 predicts every return, 0 predicts nothing, below 0 does harm. It is also low if all "
            f"returns are equal. Otherwise {advice['better_critic']}.",
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
        reading, fine, shown_by = "This cost has no limit in this run.", None, (column,)
        if costs is not None:
            lines = {"episodes": lines[""], "estimate": costs.cost}
            limit = np.fmax.reduce(costs.cost - costs.excess)
            reading = f"The cost should end at or below the limit (green). {excess_text(costs)}"
            fine, shown_by = (np.minimum(limit, 0.0), limit), (costs.metric,)
        title = "Cost of an episode" if name == ONLY_COST else f"Cost {name} of an episode"
        found.append(Panel(title, shown_by, lines, reading, fine))
    return found


def _kl_panel(run: StoredRun, advice: dict[str, str]) -> Panel:
    config, bound = run.description["config"], signs.kl_bound(run)
    lines = {"mean": signs.accepted(run, "kl"), "maximum": signs.accepted(run, "kl_max")}
    reading = (
        "The mean over states should be within the bound (green) and near it. If the maximum is "
        f"hundreds of times the mean, rare states move too far: {advice['lower_peak']}."
    )
    if bound is None:
        reading = (
            "The mean and the maximum over the states of the batch. There is no bound. A jump is a "
            f"step that was too long for its batch: {advice['shorter_steps']}."
        )
        if config.get("max_kl_per_dimension"):
            reading = (
                "The bound is max_kl times the number of components of an action. The run's folder "
                "does not say this number. If the maximum is far above the mean, "
                f"{advice['lower_peak']}."
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
            "Means over states. Every agent should move. If an agent never moves, its steps are "
            "rejected (step_rejected_agent_...), or its actions have no effect.",
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
            "The gain of an update on its own batch. Near 0, the policy learns nothing. If it is "
            f"much larger than at the start, the step fits noise: {shorter}.",
        )
    return Panel(
        "Gain of the surrogate, actual over predicted",
        ("surrogate_gain_ratio",),
        {"": signs.accepted(run, "surrogate_gain_ratio")},
        "1 means that the step gained what its gradient predicted. Far below 1, the surrogate is "
        f"curved over such a long step: {shorter}. Below 0, the step did harm.",
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
            "1 is the full step. If it is mostly less, the quadratic model predicts too small a KL "
            "divergence or too large a gain: raise --damping, or lower --max-kl.",
            limits=(0, 1.05),
        ),
        Panel(
            f"Share of rejected steps, mean over {window} updates",
            ("step_rejected",),
            {"": uniform_filter1d(rejected, window, axis=1, mode="nearest")},
            "The share should be near 0, because a rejected step wastes its batch. If not, lower "
            "--max-kl, raise --line-search-steps, or use larger batches (--num-steps).",
            fine=REJECTED,
            limits=(-0.03, 1.03),
        ),
    ]
