"""Signs of how a run went, from its metrics: at each update, or one number a seed.

All of it is numpy on the host: another run may be under way on the accelerator.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trpo_jax.records.runs import StoredRun

OFTEN_REJECTED = 0.2  # share of the steps: beyond, more than one batch in five is wasted
ALWAYS_REJECTED = 0.9  # share of a run's steps: next to nothing is learnt
FAR_BEYOND = 2.0  # times the bound on the KL divergence: its quadratic model sees less than half
SETTLED = 0.05  # of what a return has gained: one that moves by less has arrived
TREND = 3.0  # typical changes of a return from one update to the next: less is noise
RETURN_LOST = 0.3  # of what a return had gained: less may be the luck of its best tenth
TENTHS = 10

Measure = Callable[[StoredRun, slice], np.ndarray]  # (run, updates looked at) -> [num_seeds]


class Progress(NamedTuple):
    """How the return of each seed went, in means over tenths of the run; all `[num_seeds]`.

    NaN where too few episodes ended to say.

    Attributes:
        gained: the largest rise from an earlier tenth to a later one.
        lost: from the best tenth to the last.
        moves: between the lowest and the highest of the last three tenths.
        noise: what is no trend, from the median change between two updates.
    """

    gained: np.ndarray
    lost: np.ndarray
    moves: np.ndarray
    noise: np.ndarray


def median(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns the median of the known values along an axis, NaN where there is none."""
    return np.ma.filled(np.ma.median(np.ma.masked_invalid(values), axis=axis), np.nan)


def mean(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns the mean of the known values along an axis, NaN where there is none."""
    return np.ma.filled(np.ma.mean(np.ma.masked_invalid(values), axis=axis), np.nan)


def step_share(run: StoredRun) -> np.ndarray:
    """Returns the share of the policy's step that `decay_steps` left at each update, `[U]`.

    The same as `settings.decay` gives after each number of updates.
    """
    update, env_steps = run.metrics["update"][0], run.metrics["env_steps"][0]
    decay_steps = run.description["config"].get("decay_steps")
    if not decay_steps:
        return np.ones(len(update))
    return np.maximum(1 - (update - 1) * (env_steps / update / decay_steps), 0.0)


def has_line_search(run: StoredRun) -> bool:
    """Says whether steps were shortened and rejected by a line search."""
    return "line_search_steps" in run.description["config"]


def kl_bound(run: StoredRun) -> np.ndarray | None:
    """Returns the radius of the trust region at each update, in nats, `[U]`.

    None where there is none, or where it also depends on how many components an action has
    (`max_kl_per_dimension`), which the description of a run does not say.
    """
    config = run.description["config"]
    unbounded = "max_kl" not in config or not config.get("normalized_step", True)
    if unbounded or config.get("max_kl_per_dimension"):
        return None
    scheduled = run.metrics.get("max_kl")
    return (config["max_kl"] if scheduled is None else scheduled[0]) * step_share(run)


def informed(run: StoredRun) -> np.ndarray:
    """Says at which updates rewards had said anything, `[num_seeds, U]`; True if nothing tells."""
    return run.metrics.get("reward_signal", np.ones_like(run.metrics["update"])) > 0


def accepted(run: StoredRun, name: str) -> np.ndarray:
    """Returns a metric at the steps that were accepted, `[num_seeds, U]`, NaN at the others.

    A step that there was no reason for is none.
    """
    left_out = (run.metrics.get("step_rejected", 0.0) > 0) | ~informed(run)
    return np.where(left_out, np.nan, run.metrics[name])


def rejected(run: StoredRun) -> np.ndarray:
    """Returns 1 for each rejected step, `[num_seeds, U]`, NaN where none was to be taken.

    That is where a step had no length left, and where no reward had said anything yet.
    """
    wanted = (step_share(run) > 0) & informed(run)
    return np.where(wanted, run.metrics["step_rejected"], np.nan)


def kl_over_bound(run: StoredRun) -> np.ndarray:
    """Returns the mean KL divergence of accepted steps over its bound, `[num_seeds, U]`.

    NaN where no bound is known, and where it is 0.
    """
    bound = kl_bound(run)
    bound = np.nan if bound is None else np.where(bound > 0, bound, np.nan)
    return accepted(run, "kl") / bound


def kl_peak(run: StoredRun) -> np.ndarray:
    """Returns the maximum of KL(old || new) over its mean, both over states, `[num_seeds, U]`."""
    over_states = run.metrics["kl"]
    return run.metrics["kl_max"] / np.where(over_states > 0, over_states, np.nan)


def progress(run: StoredRun) -> Progress:
    """Returns how the return of each seed went, in a run of ten updates or more."""
    returns, counts = run.metrics["episodic_return"], run.metrics["num_episodes"]
    starts = np.linspace(0, returns.shape[1], TENTHS + 1).astype(int)[:-1]
    totals = np.add.reduceat(np.where(counts > 0, returns, 0.0) * counts, starts, axis=1)
    ended = np.add.reduceat(counts, starts, axis=1)
    tenths = totals / np.where(ended > 0, ended, np.nan)
    changes = [np.abs(np.diff(row[~np.isnan(row)])) for row in returns]
    return Progress(
        gained=np.fmax.reduce(tenths - np.fmin.accumulate(tenths, axis=1), axis=1),
        lost=np.fmax.reduce(tenths, axis=1) - tenths[:, -1],
        moves=np.ptp(tenths[:, -3:], axis=1),
        noise=TREND * np.array([np.median(x) if len(x) else np.nan for x in changes]),
    )


def median_of(sign: Callable[[StoredRun], np.ndarray]) -> Measure:
    """Returns the measure that is the median over updates of a sign `[num_seeds, U]`."""
    return lambda run, looked_at: median(sign(run)[:, looked_at])


def rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of rejected steps."""
    return mean(rejected(run)[:, looked_at])


def often_rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of rejected steps of the seeds that did not reject nearly all."""
    always = rejected_share(run, slice(None)) > ALWAYS_REJECTED
    return np.where(always, np.nan, rejected_share(run, looked_at))


def of_agents(run: StoredRun, name: str) -> np.ndarray:
    """Returns a metric of each agent of a team, `[N, num_seeds, U]`; N is 0 without a team."""
    columns: list[np.ndarray] = []
    while (column := f"{name}_agent_{len(columns)}") in run.metrics:
        columns.append(run.metrics[column])
    return np.stack(columns) if columns else np.empty((0, *run.metrics["update"].shape))


def agent_rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the largest share of rejected steps of one agent, where that of all is fine."""
    wanted = (step_share(run) > 0) & informed(run)
    each = np.where(wanted, of_agents(run, "step_rejected"), np.nan)[..., looked_at]
    of_all = rejected_share(run, looked_at)
    return np.where(of_all > OFTEN_REJECTED, np.nan, np.max([mean(x) for x in each], axis=0))


def updates_without_step(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the number of updates whose step had no length left."""
    stopped = np.sum(step_share(run)[looked_at] == 0)
    return np.full(len(run.metrics["seed"]), float(stopped))


def largest_kl_over_bound(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the largest KL divergence over its bound, where a line search sees to it."""
    largest = np.fmax.reduce(kl_over_bound(run)[:, looked_at], axis=1)
    return np.where(_bound_is_kept(run), largest, np.nan)


def overshot_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of updates far beyond the bound, where no line search sees to it."""
    share = np.mean(kl_over_bound(run)[:, looked_at] > FAR_BEYOND, axis=1)
    return np.where(_bound_is_kept(run), np.nan, share)


def _bound_is_kept(run: StoredRun) -> bool:
    # Weights of states (ua_trpo) bound another mean than that of the metrics.
    weighted = run.description["config"].get("uncertainty_exponent", 0.0) != 0
    return has_line_search(run) and not weighted


def entropy_change(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the entropy less that of the start, as a share of that of the start.

    The entropy of discrete actions is positive. That of continuous ones is about the same for each
    of their components at the start, so that a share means the same for any number of them.
    """
    entropy = run.metrics["entropy"]
    start = entropy[:, 0]
    whole = np.where(start > 0, start, np.maximum(-start, 1.0))
    return (median(entropy[:, looked_at]) - start) / whole


def entropy_lost_for_nothing(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of the entropy that was lost, where the return has not risen."""
    returns = progress(run)
    return np.where(returns.gained > returns.noise, np.nan, -entropy_change(run, looked_at))


def entropy_gained_still(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of the entropy that was gained, where it still rises."""
    change = entropy_change(run, looked_at)
    before = entropy_change(run, slice(looked_at.start // 2, looked_at.start))
    return np.where(change > before, change, np.nan)


def explained_variance(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the median explained variance, where there is variance to explain.

    Where a task is solved all episodes may have the same return, as the 500 of CartPole.
    """
    returns = progress(run)
    solved = (returns.gained > returns.noise) & (returns.moves < SETTLED * returns.gained)
    nothing = solved | ~informed(run)[:, -1]
    return np.where(nothing, np.nan, median(run.metrics["explained_variance"][:, looked_at]))


def return_lost(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns by how much the return fell, where that is much of what it had gained."""
    returns = progress(run)
    much = np.maximum(RETURN_LOST * returns.gained, returns.noise)
    return np.where(returns.lost > much, returns.lost, np.nan)


def num_episodes(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the number of episodes that ended."""
    return run.metrics["num_episodes"][:, looked_at].sum(axis=1)
