"""Environments by name."""

from trpo_jax.envs.base import Environment


def make(name: str) -> Environment:
    """Returns the environment of that name, from gymnax's registry.

    Args:
        name: such as "CartPole-v1" or "Breakout-MinAtar".

    Raises:
        ConfigurationError: if there is none of that name, or its spaces are not supported.
    """
    from trpo_jax.envs import gymnax  # seconds to import: only when an environment is made

    return gymnax.make(name)
