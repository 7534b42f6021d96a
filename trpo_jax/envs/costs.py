"""Costs for environments: numbers in `info`, and functions of an observation and an action."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax import user_modules
from trpo_jax.envs.base import Environment, Pool
from trpo_jax.errors import ConfigurationError

InfoCosts = Mapping[str, Callable[[Mapping[str, Any]], Any]]  # functions of `info`, by cost
NONE: InfoCosts = MappingProxyType({})
INFO = "info:"  # prefix of the name of a cost that is an entry of `info`


def info_costs(costs: Sequence[Any]) -> InfoCosts:
    """Returns the costs in a list that are entries of `info`, by name."""
    keys = [cost.removeprefix(INFO) for cost in costs if is_info_cost(cost)]
    return {key: partial(entry, key) for key in keys}


def is_info_cost(cost: Any) -> bool:
    """Returns whether a cost is an entry of `info`."""
    return isinstance(cost, str) and cost.startswith(INFO)


def entry(key: str, info: Mapping[str, Any]) -> Any:
    """Returns an entry of `info`."""
    return info[key]


def with_costs(env: Environment, costs: Sequence[Any]) -> Environment:
    """Returns an environment with more costs. Each is a function, or its name as "module:name".

    A function is `(observation, action) -> cost`. It gets the observation after the action, and the
    action that the environment takes. On the device, JAX traces the function. On the host, it is
    called for each copy of the environment, with NumPy arrays.

    Raises:
        ConfigurationError: if a cost is not a function, or if two costs have the same name.
    """
    for cost in costs:
        function = user_modules.find("cost", cost)[0] if isinstance(cost, str) else cost
        if not callable(function):
            raise ConfigurationError(
                f"The cost {cost!r} must be a function of an observation and an action, or its "
                "name, such as my_module:my_cost, or an entry of info, such as info:cost."
            )
        env = with_cost(env, getattr(function, "__name__", "cost"), function)
    return env


def with_cost(env: Environment, name: str, cost: Callable[[Any, Any], Any]) -> Environment:
    """Returns an environment with one more cost. See `with_costs`.

    Args:
        env: the environment.
        name: the name of the cost.
        cost: `(observation after the action, action) -> cost`, for one copy.

    Raises:
        ConfigurationError: if the environment has a cost with this name.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> env = trpo_jax.with_cost(env, "right", lambda observation, action: action == 1)
        >>> state, observation = env.reset(jax.random.key(0))
        >>> state, result = env.step(jax.random.key(1), state, jnp.array(1))
        >>> env.costs, result.costs
        (('right',), Array([1.], dtype=float32))
    """
    if name in env.costs:
        raise ConfigurationError(
            f"{env.name} already has a cost with the name {name}. Its costs: "
            f"{', '.join(env.costs)}. Choose another name."
        )

    def step(key, state, action):
        state, result = env.step(key, state, action)
        own = jnp.asarray(cost(result.observation, action), jnp.float32).reshape(1)
        return state, result._replace(costs=jnp.concatenate([*_listed(result.costs), own]))

    def open(*args, **options) -> Pool:
        pool = env.open(*args, **options)

        def step_all(actions):
            result = pool.step(actions)
            copies = range(len(result.reward))
            of_copy = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
            own = [cost(of_copy(result.observation, k), of_copy(actions, k)) for k in copies]
            own = np.array(own, np.float64).reshape(-1, 1)
            return result._replace(costs=np.concatenate([*_listed(result.costs), own], axis=1))

        return pool._replace(step=step_all)

    return env._replace(step=step, open=env.open and open, costs=(*env.costs, name))


def _listed(costs: Any) -> list[Any]:
    """Returns the costs that a step already has as a list of arrays."""
    return [] if isinstance(costs, tuple) else [costs]


def require_entries(name: str, costs: InfoCosts, info: Mapping[str, Any]) -> None:
    """Raises a ConfigurationError if a cost needs an entry that `info` does not have.

    Args:
        name: the name of the environment.
        costs: functions of `info`.
        info: the `info` of a step.
    """
    for cost in costs.values():
        try:
            cost(info)
        except KeyError as error:
            raise ConfigurationError(
                f"A cost needs info[{error}], but the steps of environment {name!r} have no such "
                f"entry. Their info has {', '.join(map(repr, info)) or 'no entries'}."
            ) from error
