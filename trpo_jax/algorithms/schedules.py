"""Hyperparameters that change during a run.

    algorithm = scheduled(partial(trpo.make, env), trpo.Config(), {"max_kl": lambda steps: ...})

The real numbers of a config are leaves. So the compiled program can make the algorithm again in
each update, with the numbers of that update. Every use of a number then follows its schedule.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from trpo_jax.algorithms import fields
from trpo_jax.algorithms.base import Algorithm, RolloutState, State
from trpo_jax.errors import ConfigurationError, unknown_name

Schedule = Callable[[Float[Array, ""]], Any]  # environment steps of a seed so far -> value
SHOWN = 1000  # largest number of values of a schedule that are checked before the run
FORMS = (
    "linear:START:END, exponential:START:END, cosine:START:END (each may be followed by :STEPS, "
    "the number of steps until END; otherwise END is reached at the end of the run), or "
    "piecewise:START:STEPS:VALUE:STEPS:VALUE and so on"
)


class ScheduledActing(NamedTuple):
    """State that acting carries from step to step if hyperparameters have schedules.

    Attributes:
        num_updates: number of updates done so far, the same for each of B environments.
        acting: state that acting carries in the algorithm without schedules.
    """

    num_updates: Int[Array, " B"]
    acting: Any

    @property
    def carry(self) -> Any:
        """The memory of the policy."""
        return getattr(self.acting, "carry", ())


def scheduled(
    make: Callable[[Any], Algorithm], config: Any, schedules: Mapping[str, Schedule]
) -> Algorithm:
    """Returns an algorithm that computes some hyperparameters from the steps done so far.

    The metrics of each update contain the values of these hyperparameters.

    Args:
        make: `config -> algorithm`.
        config: gives all other hyperparameters.
        schedules: `environment steps of a seed so far -> value` for each name of a hyperparameter.

    Examples:
        >>> def make(config):
        ...     return trpo_jax.trpo.make(trpo_jax.make_env("CartPole-v1"), config)
        >>> config = trpo_jax.trpo.Config(num_envs=4, num_steps=16)
        >>> schedules = {"max_kl": lambda steps: 0.02 / (1 + steps / 64)}
        >>> algorithm = scheduled(make, config, schedules)
        >>> state, update = algorithm.init(jax.random.key(0)), jax.jit(algorithm.update)
        >>> for _ in range(2):
        ...     state, metrics = update(state)
        ...     print(f"{metrics['max_kl']:.3f}")
        0.020
        0.010
    """
    first = make(config)

    def at(num_updates):
        steps = num_updates.astype(jnp.float32) * first.steps_per_update
        values = {name: jnp.float32(value(steps)) for name, value in schedules.items()}
        return make(config.replace(**values)), values

    def outside(state: State) -> State:
        rollout = state.rollout
        num_updates = jnp.full(rollout.episodes.length.shape, state.num_updates)
        acting = ScheduledActing(num_updates, rollout.acting)
        return state._replace(rollout=rollout._replace(acting=acting))

    def init(key):
        return outside(at(jnp.zeros((), jnp.int32))[0].init(key))

    def act(actor, key, episodes, acting):
        algorithm, _ = at(acting.num_updates[0])
        actions, noise, inside = algorithm.act(actor, key, episodes, acting.acting)
        return actions, noise, acting._replace(acting=inside)

    def improve(state, trajectory):
        algorithm, values = at(state.num_updates)
        inside = state.rollout._replace(acting=state.rollout.acting.acting)
        improved, fit_input, metrics = algorithm.improve(state._replace(rollout=inside), trajectory)
        return outside(improved), (state.num_updates, fit_input), metrics | values

    def fit(critic, fit_input):
        num_updates, fit_input = fit_input
        return at(num_updates)[0].fit(critic, fit_input)

    return first._replace(init=init, act=act, improve=improve, fit=fit)


def begun_anew(rollout: RolloutState, num_updates: Int[Array | np.ndarray, ""]) -> RolloutState:
    """Returns a rollout with fresh episodes, whose acting state knows the number of updates.

    Args:
        rollout: rollout state with fresh episodes. It is returned unchanged if the algorithm has
            no schedules.
        num_updates: number of updates that the run has done so far.
    """
    if not isinstance(rollout.acting, ScheduledActing):
        return rollout
    everywhere = np.full(rollout.episodes.length.shape, num_updates, np.int32)
    return rollout._replace(acting=rollout.acting._replace(num_updates=everywhere))


def started(config: Any, schedules: Mapping[str, Schedule]) -> Any:
    """Returns the config at the start of a run with schedules.

    A schedule of `max_kl`, `policy_lr` or `step_size` replaces `decay_steps`, which becomes 0.

    Examples:
        >>> config = trpo_jax.trpo.Config(decay_steps=1_000)
        >>> config = started(config, {"max_kl": optax.linear_schedule(0.02, 0.01, 1_000)})
        >>> config.max_kl, config.decay_steps
        (0.02, 0)
    """
    first = {name: np.float32(schedule(jnp.float32(0))) for name, schedule in schedules.items()}
    values: dict[str, Any] = {name: float(str(x)) for name, x in first.items()}  # 0.02, not 0.01999
    if {"max_kl", "policy_lr", "step_size"} & schedules.keys() and hasattr(config, "decay_steps"):
        values["decay_steps"] = 0
    return config.replace(**values)


def curve_of(schedule: str | Schedule, total_steps: int) -> tuple[Schedule, str]:
    """Returns a schedule, and its text for the description of a run; see `parse_schedule`."""
    if isinstance(schedule, str):
        return parse_schedule(schedule, total_steps)
    values = [f"{float(schedule(jnp.float32(x * total_steps))):g}" for x in (0, 0.5, 1)]
    return schedule, "a function, " + ", ".join(values) + " at the start, in the middle, at the end"


def parse_schedule(text: str, total_steps: int) -> tuple[Schedule, str]:
    """Returns the schedule that a text describes, and the text with its number of steps.

    Args:
        text: one of `FORMS`.
        total_steps: environment steps of the run, the length of a schedule that does not say its
            own.

    Raises:
        ConfigurationError: if the text is no schedule.

    Examples:
        >>> schedule, text = parse_schedule("linear:0.02:0.01", 1_000)
        >>> text, round(float(schedule(500)), 3)
        ('linear:0.02:0.01:1000', 0.015)
    """
    kind, *words = text.split(":")
    try:
        numbers = [float(word) for word in words]
        if kind == "piecewise":
            values, steps = numbers[::2], numbers[1::2]
            if len(numbers) % 2 and steps and steps == sorted(set(steps)) and steps[0] > 0:
                parts = [optax.constant_schedule(value) for value in values]
                return optax.join_schedules(parts, steps), text
        elif kind in CURVES and len(numbers) in (2, 3):
            start, end, steps = [*numbers, float(total_steps)][:3]
            if steps > 0:
                return CURVES[kind](start, end, steps), f"{kind}:{start!r}:{end!r}:{steps:.0f}"
    except (ValueError, ZeroDivisionError):
        pass
    raise ConfigurationError(
        f"{text!r} is no schedule. It must be {FORMS}. Steps are environment steps of each seed. "
        "START of cosine must not be 0. START and END of exponential must have the same sign."
    )


def _exponential(start: float, end: float, steps: float) -> Schedule:
    if start * end <= 0:
        raise ValueError("start and end need the same sign")
    return optax.exponential_decay(start, steps, end / start, end_value=end)


CURVES: dict[str, Callable[[float, float, float], Schedule]] = {
    "linear": optax.linear_schedule,
    "exponential": _exponential,
    "cosine": lambda start, end, steps: optax.cosine_decay_schedule(start, steps, end / start),
}


def require_schedules(
    config: Any, schedules: Mapping[str, Schedule], num_updates: int, steps_per_update: int
) -> None:
    """Checks the values of schedules at up to `SHOWN` updates, including the first and the last.

    Raises:
        ConfigurationError: if a value cannot work. The message names the schedule, the value and
            the step at which it occurs.
    """
    updates = np.unique(np.linspace(0, num_updates - 1, min(num_updates, SHOWN)).astype(int))
    steps = jnp.asarray(updates * steps_per_update, jnp.float32)
    for name, schedule in schedules.items():
        values = np.asarray(jax.vmap(lambda x, f=schedule: jnp.float32(f(x)))(steps), np.float64)
        for index in {int(values.argmin()), int(values.argmax())}:  # either finds a NaN
            try:
                fields.validate(config.replace(**{name: float(values[index])}))
            except ConfigurationError as error:
                where = f"at {updates[index] * steps_per_update:,} steps"
                raise ConfigurationError(f"The schedule of {name}, {where}: {error}") from error


def require_real(config: Any, name: str) -> None:
    """Raises a ConfigurationError if a config has no field `name` that can have a schedule."""
    found = {field.name: field for field in dataclasses.fields(config)}
    if name not in found:
        raise unknown_name("schedule", name, tuple(found))
    real = [x for x in found if isinstance(found[x].default, float) and x != "log_std_init"]
    if name not in real:
        raise ConfigurationError(
            f"{name} cannot have a schedule, because the compiled program or the start of a run "
            f"depends on it. These can have a schedule: {', '.join(real)}."
        )
