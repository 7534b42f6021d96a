"""Costs for environments: numbers in `info`, and functions of what an environment shows."""

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

InfoCosts = Mapping[str, Callable[[Mapping[str, Any]], Any]]  # of an info, by name of the cost
NONE: InfoCosts = MappingProxyType({})
INFO = "info:"  # how the name of a cost in `info` begins


def info_costs(costs: Sequence[Any]) -> InfoCosts:
    """Returns the costs that come with `info`, by name, of all that are named."""
    keys = [cost.removeprefix(INFO) for cost in costs if is_info_cost(cost)]
    return {key: partial(entry, key) for key in keys}


def is_info_cost(cost: Any) -> bool:
    """Returns whether a cost comes with `info`."""
    return isinstance(cost, str) and cost.startswith(INFO)


def entry(key: str, info: Mapping[str, Any]) -> Any:
    """Returns an entry of an info."""
    return info[key]


def with_costs(env: Environment, costs: Sequence[Any]) -> Environment:
    """Returns an environment with more costs, each a function or its name, as "module:name".

    A function is `(observation, action) -> cost`: it is given the observation that followed the
    action, and the action as the environment takes it. On the device it is traced by JAX; on the
    host it is called for each copy of the environment, with arrays of NumPy.

    Raises:
        ConfigurationError: if a cost is no function, or there are two of one name.
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
    """Returns an environment with one more cost; see `with_costs`.

    Args:
        env: the environment.
        name: of the cost.
        cost: `(observation that followed, action) -> cost`, of one copy.

    Raises:
        ConfigurationError: if there is a cost of that name.
    """
    if name in env.costs:
        raise ConfigurationError(
            f"{env.name} has a cost that is named {name} already, among {', '.join(env.costs)}."
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
    """Returns the costs that a step has so far as a list of arrays."""
    return [] if isinstance(costs, tuple) else [costs]


def require_entries(name: str, costs: InfoCosts, info: Mapping[str, Any]) -> None:
    """Raises a ConfigurationError if costs need an entry that an info does not have.

    Args:
        name: of the environment.
        costs: functions of an info.
        info: of a step.
    """
    for cost in costs.values():
        try:
            cost(info)
        except KeyError as error:
            raise ConfigurationError(
                f"Environment {name!r} has no info[{error}] in its steps, which is to be a cost. "
                f"Its info has {', '.join(map(repr, info)) or 'no entries'}."
            ) from error
