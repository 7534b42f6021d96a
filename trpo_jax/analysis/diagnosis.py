"""Warnings about a run, found in its metrics. Each warning says what to do.

A check computes one number for each seed and compares it with a range of fine numbers. The ranges
were chosen so that healthy runs get no warning: runs of every algorithm on Pendulum, of several
algorithms on CartPole and Acrobot, and of TRPO on MountainCar and Hopper.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.analysis.diagnosis_costs import costs_of, excess_share, out_of_reach
from trpo_jax.records.runs import StoredRun

MIN_UPDATES = 10  # the first updates look bad in any run
REJECTED = (0.0, signs.OFTEN_REJECTED)  # share of rejected steps
RESIDUAL = (0.0, 0.5)  # relative; 10 iterations leave 0.4 on Hopper, and training succeeds
KL_SHORT = 0.25  # share of the bound (half the step length); healthy runs reach 0.5 with damping
KL_EXCEEDED = 1.01  # share of the bound, with a line search; 1 % is for rounding
OVERSHOT = 0.1  # share of updates far beyond the bound; a few are normal without a line search
KL_PEAK = 150.0  # maximum over mean; up to 110 in stable runs, 200 to 400 in unstable runs
GAIN_RATIO = (0.5, 2.0)  # actual over predicted gain; 0.7 to 1.05 in healthy runs
ENTROPY_LOST = 0.95  # share of the first entropy; a Gaussian has 1/4 of its deviation left
ENTROPY_GAINED = 1.0  # share of the first entropy; a Gaussian has 4 times its deviation
CRITIC = (0.1, 1.0)  # explained variance; a good critic soon reaches 0.7
EXCESS = 0.1  # share of the cost; at the limit, noise is above it in half of the updates
LISTED = 8  # most seeds that a warning lists
PRICES = {"multiplier_lr": "--multiplier-lr", "pid_i": "--pid-i"}  # flags that raise a price


class RunWarning(NamedTuple):
    """A warning about some seeds of a run.

    Attributes:
        name: the problem in a few words.
        metric: the column of `metrics.csv` that shows the problem.
        seeds: the seeds that have the problem.
        updates: the first and the last update that were checked.
        measured: a sentence with the number that was found, or with the lowest and the highest
            number of these seeds.
        advice: what to do.
    """

    name: str
    metric: str
    seeds: tuple[int, ...]
    updates: tuple[int, int]
    measured: str
    advice: str


class Check(NamedTuple):
    """A check for one problem.

    Attributes:
        name: name of the warning.
        metrics: the columns that the check needs. The first column shows the problem.
        since: the share of the run that is skipped at the start.
        measure: computes one number for each seed; NaN is fine.
        fine: the lowest and the highest number that are fine.
        measured: a sentence about the number, with `{}` in its place; `{} %` if it is a share.
        advice: what to do. Names in braces are keys of `remedies`.
    """

    name: str
    metrics: tuple[str, ...]
    since: float
    measure: signs.Measure
    fine: tuple[float, float]
    measured: str
    advice: str


RETURNS = ("episodic_return", "num_episodes")
TOO_SHORT = Check(
    "too short to judge",
    ("update",),
    0,
    lambda run, looked_at: run.metrics["update"][:, -1],
    (MIN_UPDATES, np.inf),
    f"the run has {{}} updates, but a diagnosis needs at least {MIN_UPDATES}",
    "train longer",
)
CHECKS = (
    Check(
        "no signal",
        ("reward_signal",),
        0,
        lambda run, looked_at: run.metrics["reward_signal"][:, -1],
        (1, 1),
        "all rewards were the same, so the run has no signal to learn from",
        "the policy does not change before a different reward comes: check the rewards of the "
        "environment, explore more, or train longer",
    ),
    Check(
        "steps always rejected",
        ("step_rejected",),
        0,
        signs.rejected_share,
        (0, signs.ALWAYS_REJECTED),
        "{} % of the steps were rejected",
        "the policy hardly changes: lower --max-kl or raise --damping, but fix a high CG residual "
        "first",
    ),
    Check(
        "steps often rejected",
        ("step_rejected",),
        signs.LAST_THIRD,
        signs.often_rejected_share,
        REJECTED,
        "{} % of the steps were rejected",
        "lower --max-kl, raise --line-search-steps, or use larger batches (--num-steps)",
    ),
    Check(
        "steps of one agent often rejected",
        ("step_rejected", "step_rejected_agent_0"),
        signs.LAST_THIRD,
        signs.agent_rejected_share,
        REJECTED,
        "{} % of the steps of one agent were rejected (columns step_rejected_agent_...)",
        "this agent learns less than the others: lower --max-kl, raise --line-search-steps, or use "
        "larger batches (--num-steps)",
    ),
    Check(
        "steps of length 0",
        ("kl",),
        0,
        signs.updates_without_step,
        (0, 0),
        "the last {} updates did not change the policy, because --decay-steps was over",
        "raise --decay-steps to the length of the run",
    ),
    Check(
        "CG residual high",
        ("cg_residual",),
        signs.LAST_THIRD,
        signs.median_of(lambda run: run.metrics["cg_residual"]),
        RESIDUAL,
        "median relative residual {}",
        "the direction is far from the natural gradient: raise --cg-iters or --damping",
    ),
    Check(
        "KL far below its bound",
        ("kl",),
        0,
        signs.median_of(signs.full_kl_over_bound),
        (KL_SHORT, np.inf),
        "the median step used {} % of the bound",
        "{longer_steps}, unless the line search shortens the steps",
    ),
    Check(
        "KL above its bound",
        ("kl",),
        0,
        signs.largest_kl_over_bound,
        (0, KL_EXCEEDED),
        "the KL divergence reached {} times its bound",
        "the line search should reject such a step: look for a mistake in your own algorithm",
    ),
    Check(
        "KL far above its bound",
        ("kl", "step_fraction"),
        0,
        signs.overshot_share,
        (0, OVERSHOT),
        f"{{}} % of the updates went beyond {signs.FAR_BEYOND:g} times the bound",
        "{shorter_steps}, raise --damping, or use trpo, whose line search rejects such steps",
    ),
    Check(
        "single states moved too far",
        ("kl_max", "kl"),
        signs.LAST_THIRD,
        signs.median_of(signs.kl_peak),
        (0, KL_PEAK),
        "the maximum of the KL divergence is {} times its mean",
        "{lower_peak}, or use larger batches (--num-steps)",
    ),
    Check(
        "gain not as predicted",
        ("surrogate_gain_ratio",),
        signs.LAST_THIRD,
        signs.median_of(lambda run: signs.accepted(run, "surrogate_gain_ratio")),
        GAIN_RATIO,
        "the median step gained {} times the gain that its gradient predicted",
        "the surrogate is not linear over such a long step: {shorter_steps}",
    ),
    Check(
        "entropy collapsed",
        ("entropy", *RETURNS),
        signs.LAST_THIRD,
        signs.entropy_lost_for_nothing,
        (-np.inf, ENTROPY_LOST),
        "{} % of the entropy of the first update was lost, and the return has not risen",
        "raise --entropy-coef, or {shorter_steps}",
    ),
    Check(
        "entropy grows without end",
        ("entropy",),
        signs.LAST_THIRD,
        signs.entropy_gained_still,
        (-np.inf, ENTROPY_GAINED),
        "the entropy has grown by {} % of the entropy of the first update, and still grows",
        "{less_entropy}",
    ),
    Check(
        "critic useless",
        ("explained_variance", *RETURNS),
        signs.LAST_THIRD,
        signs.explained_variance,
        CRITIC,
        "median explained variance {}",
        "{better_critic}",
    ),
    Check(
        "return fell",
        RETURNS,
        0,
        signs.return_lost,
        (0, 0),
        "the return in the last tenth of the run is {} below the best tenth",
        "{shorter_steps}, or let it fall during the run with --decay-steps",
    ),
    Check(
        "no episode ended",
        ("num_episodes",),
        0,
        signs.num_episodes,
        (1, np.inf),
        "{} episodes ended, so the return is unknown",
        "train longer, or check that an episode of this task can end",
    ),
)


def find_warnings(run: StoredRun) -> list[RunWarning]:
    """Returns the warnings about a run.

    If the run has too few updates, the only warning says so.
    """
    short = run.metrics["update"].shape[1] < MIN_UPDATES
    return _found(
        [TOO_SHORT] if short else [*CHECKS, *_reach_checks(run), *_excess_checks(run)], run
    )


def find_limit_warnings(run: StoredRun) -> list[RunWarning]:
    """Returns a warning for each limit on a cost that no policy of a run kept.

    A run with too few updates has no such warning.
    """
    short = run.metrics["update"].shape[1] < MIN_UPDATES
    return [] if short else _found(_reach_checks(run), run)


def _found(checks: Iterable[Check], run: StoredRun) -> list[RunWarning]:
    found = (_apply(check, run) for check in checks)
    return [warning for warning in found if warning is not None]


def _reach_checks(run: StoredRun) -> Iterator[Check]:
    for costs in costs_of(run):
        priced = "the price of the cost kept rising"
        yield Check(
            f"limit of the {costs.name} out of reach",
            (costs.metric,),
            0,
            lambda run, looked_at, costs=costs: out_of_reach(costs),
            (np.inf, np.inf),  # any number is wrong, and NaN is fine
            "no policy kept the limit: the lowest cost is {}, although "
            + ("late steps only lowered the cost" if costs.multiplier is None else priced),
            "raise --cost-limit, or train longer if the cost still falls",
        )


def _excess_checks(run: StoredRun) -> Iterator[Check]:
    for costs in costs_of(run):
        yield Check(
            f"{costs.name} above its limit",
            (costs.metric,),
            signs.LAST_THIRD,
            lambda run, looked_at, costs=costs: excess_share(costs),
            (-np.inf, EXCESS),
            "{} % of the cost of an episode is above the limit",
            "{lower_cost}",
        )


def describe(warning: RunWarning) -> str:
    """Returns the text of a warning, without its name, as one paragraph."""
    seeds, (first, last) = warning.seeds, warning.updates
    which = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds[:LISTED]))
    which += f" and {len(seeds) - LISTED} more" if len(seeds) > LISTED else ""
    return f"{which}, updates {first:,} to {last:,}: {warning.measured}. {warning.advice}."


def remedies(config: dict[str, Any]) -> dict[str, str]:
    """Returns the advice that depends on the flags of an algorithm, by name.

    Args:
        config: the fields of the algorithm's config.
    """
    if not config.get("normalized_step", True):
        shorter = "lower --step-size"
    else:
        shorter = "lower --max-kl" if "max_kl" in config else "lower --policy-lr"
    trust_region = config.get("gae_critic") == "trust_region"
    fit = "--critic-max-change" if trust_region else "--critic-epochs or --critic-lr"
    scale = "" if config.get("scale_rewards") else ", or set --scale-rewards"
    return {
        "shorter_steps": shorter,
        "longer_steps": "lower --damping" + (" or --c" if "c" in config else ""),
        "lower_peak": "bound it with --kl-peak" if "kl_peak" in config else shorter,
        "better_critic": f"raise {fit}{scale}",
        "lower_cost": next((f"raise {y}" for x, y in PRICES.items() if x in config), "train longer")
        + ", or use larger batches (--num-steps)",
        "less_entropy": "lower --entropy-coef" if config.get("entropy_coef") else shorter,
    }


def _apply(check: Check, run: StoredRun) -> RunWarning | None:
    if not run.metrics.keys() >= set(check.metrics):
        return None
    update = run.metrics["update"][0].astype(int)
    looked_at = slice(int(check.since * len(update)), None)
    values = check.measure(run, looked_at)
    wrong = (values < check.fine[0]) | (values > check.fine[1])
    if not wrong.any():
        return None
    scale = 100 if "{} %" in check.measured else 1
    ends = [_short(scale * end(values[wrong])) for end in (np.min, np.max)]
    advice = check.advice.format(**remedies(run.description["config"]))
    return RunWarning(
        name=check.name,
        metric=check.metrics[0],
        seeds=tuple(run.metrics["seed"][wrong, 0].astype(int).tolist()),
        updates=(int(update[looked_at][0]), int(update[-1])),
        measured=check.measured.format(" to ".join(dict.fromkeys(ends))),
        advice=advice[0].upper() + advice[1:],
    )


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
