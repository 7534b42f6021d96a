"""Hyperparameters that change while a run goes on.

    algorithm = scheduled(partial(trpo.make, env), trpo.Config(), {"max_kl": lambda steps: ...})

Real numbers of a config are leaves: the algorithm of each update is made anew inside the compiled
program, with the numbers of that update, so that whatever an algorithm does with a number follows.
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
SHOWN = 1000  # values of a schedule that are checked beforehand, at the most
FORMS = (
    "linear:START:END, exponential:START:END or cosine:START:END, each with :STEPS at its end if "
    "the value is to be reached before the run ends, or piecewise:START:STEPS:VALUE:STEPS:VALUE..."
)


class ScheduledActing(NamedTuple):
    """What acting carries where hyperparameters change.

    Attributes:
        num_updates: updates done so far, of each of B environments.
        acting: what the algorithm itself carries.
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
    """Returns an algorithm some of whose hyperparameters are functions of the steps done.

    Their values at each update are in its metrics.

    Args:
        make: `config -> algorithm`.
        config: all other hyperparameters.
        schedules: `environment steps of a seed so far -> value` by name.
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
    """Returns a rollout whose episodes begin anew, after so many updates of the run."""
    if not isinstance(rollout.acting, ScheduledActing):
        return rollout
    everywhere = np.full(rollout.episodes.length.shape, num_updates, np.int32)
    return rollout._replace(acting=rollout.acting._replace(num_updates=everywhere))


def started(config: Any, schedules: Mapping[str, Schedule]) -> Any:
    """Returns the config that a run with schedules starts with.

    A schedule of what sets the length of the policy's step takes the place of `decay_steps`.
    """
    first = {name: np.float32(schedule(jnp.float32(0))) for name, schedule in schedules.items()}
    values: dict[str, Any] = {name: float(str(x)) for name, x in first.items()}  # 0.02, as meant
    if {"max_kl", "policy_lr", "step_size"} & schedules.keys() and hasattr(config, "decay_steps"):
        values["decay_steps"] = 0
    return config.replace(**values)


def curve_of(schedule: str | Schedule, total_steps: int) -> tuple[Schedule, str]:
    """Returns a schedule, and what the description of a run says of it; see `parse_schedule`."""
    if isinstance(schedule, str):
        return parse_schedule(schedule, total_steps)
    values = [f"{float(schedule(jnp.float32(x * total_steps))):g}" for x in (0, 0.5, 1)]
    return schedule, "a function, " + ", ".join(values) + " at the start, in the middle, at the end"


def parse_schedule(text: str, total_steps: int) -> tuple[Schedule, str]:
    """Returns the schedule that a text describes, and the text with its steps in it.

    Args:
        text: one of `FORMS`.
        total_steps: environment steps of a run, over which it lasts if it does not say how many.

    Raises:
        ConfigurationError: if it describes none.
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
        f"{text!r} is no schedule. It must be {FORMS}. Steps are of the environment, for each seed."
    )


def _exponential(start: float, end: float, steps: float) -> Schedule:
    if start * end <= 0:
        raise ValueError("of the same sign only")
    return optax.exponential_decay(start, steps, end / start, end_value=end)


CURVES: dict[str, Callable[[float, float, float], Schedule]] = {
    "linear": optax.linear_schedule,
    "exponential": _exponential,
    "cosine": lambda start, end, steps: optax.cosine_decay_schedule(start, steps, end / start),
}


def require_schedules(
    config: Any, schedules: Mapping[str, Schedule], num_updates: int, steps_per_update: int
) -> None:
    """Checks the values of schedules over a run, its first and its last update among them.

    Raises:
        ConfigurationError: naming the first that cannot work.
    """
    updates = np.unique(np.linspace(0, num_updates - 1, min(num_updates, SHOWN)).astype(int))
    steps = jnp.asarray(updates * steps_per_update, jnp.float32)
    for name, schedule in schedules.items():
        values = np.asarray(jax.vmap(lambda x, f=schedule: jnp.float32(f(x)))(steps), np.float64)
        for index in {int(values.argmin()), int(values.argmax())}:  # NaN is both
            try:
                fields.validate(config.replace(**{name: float(values[index])}))
            except ConfigurationError as error:
                where = f"at {updates[index] * steps_per_update:,} steps"
                raise ConfigurationError(f"The schedule of {name}, {where}: {error}") from error


def require_real(config: Any, name: str) -> None:
    """Raises a ConfigurationError if no field of that name can have a schedule."""
    found = {field.name: field for field in dataclasses.fields(config)}
    if name not in found:
        raise unknown_name("schedule", name, tuple(found))
    real = [x for x in found if isinstance(found[x].default, float) and x != "log_std_init"]
    if name not in real:
        raise ConfigurationError(
            f"{name} cannot have a schedule: what fixes shapes, and what a run starts with, stays "
            f"as it is. A schedule may have {', '.join(real)}."
        )
