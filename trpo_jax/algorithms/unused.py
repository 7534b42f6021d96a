"""Finds hyperparameters without an effect, because of another one or of the environment."""

from collections.abc import Iterator
from typing import Any

import jax

from trpo_jax.agent import NO_MEMORY
from trpo_jax.envs.base import Environment
from trpo_jax.envs.specs import Agents, Box, num_components

OF_ANOTHER_CHOICE = {  # fields: (the field that decides, the value with which they have an effect)
    ("ou_rho",): ("exploration", "ou"),
    ("color_beta",): ("exploration", "colored"),
    ("critic_lr", "critic_epochs", "critic_minibatches"): ("gae_critic", "adam"),
    ("critic_max_change",): ("gae_critic", "trust_region"),
    ("step_size",): ("normalized_step", False),
    (
        "max_kl",
        "max_kl_per_dimension",
        "damped_scaling",
        "kl_penalty",
        "penalty_memory",
    ): ("normalized_step", True),
}


def unused_fields(env: Environment, config: Any) -> Iterator[tuple[str, str]]:
    """Yields the name of each field of a config that has no effect, and the reason.

    Args:
        env: the environment.
        config: the config of any algorithm. Fields that it does not have may be yielded too.

    Examples:
        >>> env, config = trpo_jax.make_env("Pendulum-v1"), trpo_jax.trpo.Config(gae_critic="adam")
        >>> dict(unused_fields(env, config))["critic_max_change"]
        'gae_critic is adam, not trust_region'
    """
    action = env.action.padded if isinstance(env.action, Agents) else env.action
    if not any(isinstance(part, Box) for part in jax.tree.leaves(action)):
        reason = f"the actions of {env.name} are not continuous"
        yield from ((name, reason) for name in ("log_std_init", "state_dependent_std"))
    if num_components(action) == 1:
        yield "max_kl_per_dimension", f"the actions of {env.name} have one component"
    for names, (decisive, value) in OF_ANOTHER_CHOICE.items():
        found = getattr(config, decisive, value)
        if found != value:
            yield from ((name, f"{decisive} is {found}, not {value}") for name in names)
    if getattr(config, "kl_penalty", 1.0) == 0:
        yield "penalty_memory", "kl_penalty is 0"
    if getattr(config, "memory", NO_MEMORY) == NO_MEMORY:
        names = ("memory_size", "memory_checkpoint")
        yield from ((name, f"memory is {NO_MEMORY}") for name in names)
    if getattr(config, "line_search_steps", 2) == 1:
        yield "line_search_shrink", "line_search_steps is 1"
