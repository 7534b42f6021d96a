"""Trained policies that the package brings."""

from pathlib import Path

from trpo_jax.errors import unknown_name
from trpo_jax.records.acting import ActingPolicy
from trpo_jax.records.policies import load_policy

FILES = {
    "CartPole-v1": "CartPole-v1.msgpack",
    "Pendulum-v1": "Pendulum-v1.msgpack",
    "gym/Walker2d-v5": "Walker2d-v5.msgpack",
}


def pretrained(env: str) -> ActingPolicy:
    """Returns a trained policy of an environment, a function `(observation, key=None) -> action`.

    `docs/policies.md` says how each policy was trained and what it scores.

    Args:
        env: "CartPole-v1", "Pendulum-v1" or "gym/Walker2d-v5".

    Raises:
        ConfigurationError: if the package has no policy of this environment.

    Examples:
        >>> policy = trpo_jax.pretrained("CartPole-v1")
        >>> int(policy([0.0, 0.0, 0.1, 0.5]))  # the pole falls to the right: push right
        1
    """
    if env not in FILES:
        raise unknown_name("policy of the package", env, FILES)
    return load_policy(Path(__file__).parent / "trained" / FILES[env])
