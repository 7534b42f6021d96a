"""Estimates the memory that a run needs at least, before anything is compiled."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from trpo_jax.algorithms.base import Algorithm
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment, key_shape
from trpo_jax.errors import counted
from trpo_jax.rollout import start_episodes
from trpo_jax.running.description import splits_runs
from trpo_jax.running.host_program import trajectory_shapes
from trpo_jax.running.memory import devices_here, require_room

BATCH, SIZES = ("num_envs", "num_steps"), ("hidden_sizes", "num_critics")


def tree_bytes(tree: PyTree) -> int:
    """Returns the size in bytes of the arrays in a tree, or of arrays with the shapes in it."""
    shapes = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    return sum(math.prod(x.shape) * np.dtype(_stored(x.dtype)).itemsize for x in shapes)


def _stored(dtype: Any) -> Any:
    return np.uint64 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype


def require_memory(
    algorithm: Algorithm, num_seeds: int, evaluation_episodes: int, placement: Placement | None
) -> None:
    """Raises a ConfigurationError if a run needs more memory than there is.

    The estimate counts the state and the trajectory of each seed, and the outputs of the widest
    layer for a batch. The other memory of an update is known only after compilation.

    Args:
        algorithm: the algorithm.
        num_seeds: number of seeds in parallel.
        evaluation_episodes: number of episodes for evaluating the policy of a seed.
        placement: the devices of the run; None for the default device.
    """
    config, devices = algorithm.config, devices_here(placement)
    parts_of_seed = _parts(algorithm)
    on_cpu = devices[0].platform == "cpu"  # CPU devices share the memory
    total = num_seeds * sum(parts_of_seed.values()) // (1 if on_cpu else len(devices))
    largest = max(parts_of_seed, key=lambda names: parts_of_seed[names])
    require_room(
        f"The training of {counted(num_seeds, 'seed')}",
        total,
        devices[0],
        _flags(config, largest, num_seeds),
    )
    require_evaluation_memory(
        algorithm.env, num_seeds, evaluation_episodes, placement, "--evaluation-episodes"
    )


def require_evaluation_memory(
    env: Environment,
    num_seeds: int,
    num_episodes: int,
    placement: Placement | None,
    flag: str,
) -> None:
    """Raises a ConfigurationError if an evaluation of all seeds in parallel needs too much memory.

    Args:
        env: the environment.
        num_seeds: number of seeds.
        num_episodes: number of episodes of each seed.
        placement: the devices of the evaluation; None for the default device.
        flag: the flag that lowers the number of episodes, for the message.
    """
    devices = devices_here(placement)
    episodes = jax.eval_shape(lambda key: start_episodes(env, key, 1), key_shape())
    if env.open is not None:  # few copies play at a time, so only the returns of episodes count
        episodes = np.zeros(1, np.float32)
    split = placement is not None and splits_runs(placement) and devices[0].platform != "cpu"
    needed = num_seeds * num_episodes * tree_bytes(episodes) // (len(devices) if split else 1)
    require_room("The evaluation", needed, devices[0], [f"{flag} ({num_episodes:,})"])


def _parts(algorithm: Algorithm) -> dict[tuple[str, ...], int]:
    """Returns the bytes that a seed needs, by the names of the settings that decide them."""
    state = jax.eval_shape(algorithm.init, key_shape())
    trajectory = trajectory_shapes(algorithm, state)
    hidden_sizes = getattr(algorithm.config, "hidden_sizes", ())
    rows = math.prod(trajectory.reward.shape)
    layer = rows * max(hidden_sizes, default=0) * np.dtype(np.float32).itemsize
    rollout, replay = tree_bytes(state.rollout), tree_bytes(getattr(state, "step_state", ()))
    replay = replay if hasattr(algorithm.config, "replay_size") else 0
    return {
        BATCH: tree_bytes(trajectory) + layer + rollout,
        ("replay_size",): replay,
        SIZES: tree_bytes(state) - rollout - replay,
    }


def _flags(config: Any, names: tuple[str, ...], num_seeds: int) -> list[str]:
    """Returns the flags of some settings with their current values, for a message."""
    chosen = {name: getattr(config, name, None) for name in names}
    chosen["num_seeds"] = num_seeds if num_seeds > 1 else None
    described = {
        name: f"{x:,}" if isinstance(x, int) else " ".join(map(str, x))
        for name, x in chosen.items()
        if x is not None
    }
    return [f"--{name.replace('_', '-')} ({text})" for name, text in described.items()]
