"""Signs of the health of a run, computed from its metrics.

Some signs have a number for each update, `[num_seeds, U]`, and others one number for each seed. All
signs use NumPy, because another run may be using the accelerator.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trpo_jax.records.runs import StoredRun

LAST_THIRD = 2 / 3  # the last third begins after this share of a run
OFTEN_REJECTED = 0.2  # share of the steps; more wastes over one batch in five
ALWAYS_REJECTED = 0.9  # share of all steps; with more, the policy hardly learns
FAR_BEYOND = 2.0  # times the KL bound; the quadratic model then predicts less than half of the KL
SETTLED = 0.05  # share of the gained return; a return that moves by less has converged
TREND = 3.0  # times the median change of the return between updates; less is noise
RETURN_LOST = 0.3  # share of the gained return; losing less may be noise in the best tenth
TENTHS = 10

Measure = Callable[[StoredRun, slice], np.ndarray]  # (run, updates to look at) -> [num_seeds]


class Progress(NamedTuple):
    """The course of the return of each seed, from its means over tenths of the run.

    All arrays are `[num_seeds]`. A number is NaN if too few episodes ended.

    Attributes:
        gained: largest rise from one tenth to a later tenth.
        lost: fall from the best tenth to the last tenth.
        moves: difference between the lowest and the highest of the last three tenths.
        noise: largest change that counts as noise, from the median change between two updates.
    """

    gained: np.ndarray
    lost: np.ndarray
    moves: np.ndarray
    noise: np.ndarray


def median(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns the median of the finite values along an axis, NaN without finite values."""
    return np.ma.filled(np.ma.median(np.ma.masked_invalid(values), axis=axis), np.nan)


def mean(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns the mean of the finite values along an axis, NaN without finite values."""
    return np.ma.filled(np.ma.mean(np.ma.masked_invalid(values), axis=axis), np.nan)


def step_share(run: StoredRun) -> np.ndarray:
    """Returns the share of the full step size that `decay_steps` leaves at each update, `[U]`.

    These are the numbers that `trpo_jax.algorithms.checks.decay` returned during the run.
    """
    update, env_steps = run.metrics["update"][0], run.metrics["env_steps"][0]
    decay_steps = run.description["config"].get("decay_steps")
    if not decay_steps:
        return np.ones(len(update))
    return np.maximum(1 - (update - 1) * (env_steps / update / decay_steps), 0.0)


def has_line_search(run: StoredRun) -> bool:
    """Returns whether the algorithm has a line search."""
    return "line_search_steps" in run.description["config"]


def kl_bound(run: StoredRun) -> np.ndarray | None:
    """Returns the bound on the mean KL divergence at each update, in nats, `[U]`.

    It is None if the algorithm has no bound. It is also None with `max_kl_per_dimension`, if
    `config.json` is older than version 0.11 and does not have the number of components of an
    action.
    """
    config = run.description["config"]
    unbounded = "max_kl" not in config or not config.get("normalized_step", True)
    per_dimension = config.get("max_kl_per_dimension")
    components = run.description.get("action_components") if per_dimension else 1
    if unbounded or components is None:
        return None
    scheduled = run.metrics.get("max_kl")
    radius = config["max_kl"] if scheduled is None else scheduled[0]
    return radius * components * step_share(run)


def informed(run: StoredRun) -> np.ndarray:
    """Returns whether the rewards had carried a signal by each update, `[num_seeds, U]`.

    It is True if the run did not record this.
    """
    return run.metrics.get("reward_signal", np.ones_like(run.metrics["update"])) > 0


def accepted(run: StoredRun, name: str) -> np.ndarray:
    """Returns a metric at the accepted steps, `[num_seeds, U]`; NaN at other updates.

    A step before the rewards carried a signal does not count.
    """
    left_out = (run.metrics.get("step_rejected", 0.0) > 0) | ~informed(run)
    return np.where(left_out, np.nan, run.metrics[name])


def rejected(run: StoredRun) -> np.ndarray:
    """Returns 1 for a rejected step, 0 for an accepted step, `[num_seeds, U]`.

    It is NaN at updates that should not step: `decay_steps` was over, or the rewards had carried no
    signal yet.
    """
    wanted = (step_share(run) > 0) & informed(run)
    return np.where(wanted, run.metrics["step_rejected"], np.nan)


def kl_over_bound(run: StoredRun) -> np.ndarray:
    """Returns the mean KL divergence of accepted steps divided by its bound, `[num_seeds, U]`.

    It is NaN if the bound is unknown or 0.
    """
    bound = kl_bound(run)
    bound = np.nan if bound is None else np.where(bound > 0, bound, np.nan)
    return accepted(run, "kl") / bound


def is_penalised(run: StoredRun) -> np.ndarray:
    """Returns whether a penalty may end the step before the bound, `[num_seeds, U]`."""
    constant = np.full(run.metrics["update"].shape, run.description["config"].get("kl_penalty", 0))
    return run.metrics.get("kl_penalty", constant) > 0


def full_kl_over_bound(run: StoredRun) -> np.ndarray:
    """Returns `kl_over_bound`; NaN if a penalty may have ended the step before the bound."""
    return np.where(is_penalised(run), np.nan, kl_over_bound(run))


def kl_peak(run: StoredRun) -> np.ndarray:
    """Returns the maximum over states of KL(old || new) divided by its mean, `[num_seeds, U]`.

    If a penalty keeps the mean below its bound, the maximum is divided by the bound. A single state
    does not move too far only because the other states move little.
    """
    over_states, bound = run.metrics["kl"], kl_bound(run)
    if bound is not None:
        over_states = np.where(is_penalised(run), np.maximum(over_states, bound), over_states)
    return run.metrics["kl_max"] / np.where(over_states > 0, over_states, np.nan)


def progress(run: StoredRun) -> Progress:
    """Returns the course of the return of each seed. The run needs at least ten updates."""
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
    """Returns the measure that takes the median over updates of a sign `[num_seeds, U]`."""
    return lambda run, looked_at: median(sign(run)[:, looked_at])


def rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of rejected steps of each seed."""
    return mean(rejected(run)[:, looked_at])


def often_rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of rejected steps; NaN for a seed that rejected nearly all its steps."""
    always = rejected_share(run, slice(None)) > ALWAYS_REJECTED
    return np.where(always, np.nan, rejected_share(run, looked_at))


def of_agents(run: StoredRun, name: str) -> np.ndarray:
    """Returns a metric of each of N agents, `[N, num_seeds, U]`; N is 0 without a team."""
    columns: list[np.ndarray] = []
    while (column := f"{name}_agent_{len(columns)}") in run.metrics:
        columns.append(run.metrics[column])
    return np.stack(columns) if columns else np.empty((0, *run.metrics["update"].shape))


def agent_rejected_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of rejected steps of the agent that has most of them.

    It is NaN for a seed whose share over all agents is too high. Another check warns of this.
    """
    wanted = (step_share(run) > 0) & informed(run)
    each = np.where(wanted, of_agents(run, "step_rejected"), np.nan)[..., looked_at]
    of_all = rejected_share(run, looked_at)
    return np.where(of_all > OFTEN_REJECTED, np.nan, np.max([mean(x) for x in each], axis=0))


def updates_without_step(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the number of updates whose step had length 0, because `decay_steps` was over."""
    stopped = np.sum(step_share(run)[looked_at] == 0)
    return np.full(len(run.metrics["seed"]), float(stopped))


def largest_kl_over_bound(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the largest KL divergence divided by its bound; NaN without a line search."""
    largest = np.fmax.reduce(kl_over_bound(run)[:, looked_at], axis=1)
    return np.where(_bound_is_kept(run), largest, np.nan)


def overshot_share(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of updates far beyond the KL bound; NaN with a line search."""
    share = np.mean(kl_over_bound(run)[:, looked_at] > FAR_BEYOND, axis=1)
    return np.where(_bound_is_kept(run), np.nan, share)


def _bound_is_kept(run: StoredRun) -> bool:
    # trpo_ensemble bounds a mean with weights of states. The metric has no weights.
    weighted = run.description["config"].get("uncertainty_exponent", 0.0) != 0
    return has_line_search(run) and not weighted


def entropy_change(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the change of the entropy since the first update, as a share of the first entropy.

    The entropy of discrete actions is positive. The first entropy of continuous actions is about
    the same for each component, so a share means the same for any number of components.
    """
    entropy = run.metrics["entropy"]
    start = entropy[:, 0]
    whole = np.where(start > 0, start, np.maximum(-start, 1.0))
    return (median(entropy[:, looked_at]) - start) / whole


def entropy_lost_for_nothing(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of the entropy that was lost; NaN for a seed whose return has risen."""
    returns = progress(run)
    return np.where(returns.gained > returns.noise, np.nan, -entropy_change(run, looked_at))


def entropy_gained_still(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the share of the entropy that was gained; NaN if the entropy stopped rising."""
    change = entropy_change(run, looked_at)
    before = entropy_change(run, slice(looked_at.start // 2, looked_at.start))
    return np.where(change > before, change, np.nan)


def explained_variance(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the median explained variance; NaN for a seed without variance to explain.

    In a solved task, all episodes may have the same return, such as 500 in CartPole.
    """
    returns = progress(run)
    solved = (returns.gained > returns.noise) & (returns.moves < SETTLED * returns.gained)
    nothing = solved | ~informed(run)[:, -1]
    return np.where(nothing, np.nan, median(run.metrics["explained_variance"][:, looked_at]))


def return_lost(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the fall of the return since its best tenth; NaN if the fall is small or noise."""
    returns = progress(run)
    much = np.maximum(RETURN_LOST * returns.gained, returns.noise)
    return np.where(returns.lost > much, returns.lost, np.nan)


def num_episodes(run: StoredRun, looked_at: slice) -> np.ndarray:
    """Returns the number of episodes that ended in each seed."""
    return run.metrics["num_episodes"][:, looked_at].sum(axis=1)
