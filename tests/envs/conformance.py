"""Checks for every environment that runs in JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.envs.specs import split_mask, to_environment_action
from trpo_jax.rollout import random_actions, rollout, start_episodes

NUM_ENVS, NUM_STEPS, TIME_LIMIT = 4, 12, 5


def example_action(env, key):
    """Returns a random action of the environment."""
    chosen = jax.tree.map(lambda x: x[0], random_actions(key, env.action, 1))
    return to_environment_action(env.action, chosen)


def flat(observations, axes=1):
    """Returns all numbers of a batch of observations, `[*batch, N]`, for `axes` batch axes."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(observations)]
    return np.concatenate([x.reshape(*x.shape[:axes], -1) for x in leaves], axis=-1)


def check_types(env):
    """Checks that a step and a reset return the same types, and that the types are fixed."""
    key = jax.random.key(0)
    state, observation = jax.eval_shape(env.reset, key)
    action = jax.eval_shape(partial(example_action, env), key)
    next_state, result = jax.eval_shape(env.step, key, state, action)
    describe = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert describe(state) == describe(next_state)
    assert not any(x.weak_type for x in jax.tree.leaves((next_state, result)))
    assert describe(observation) == describe(result.observation)
    specs, shown = jax.tree.leaves(env.observation), jax.tree.leaves(observation)
    assert [(x.shape, x.dtype) for x in specs] == [(x.shape, x.dtype) for x in shown]
    assert jax.tree.structure(env.observation) == jax.tree.structure(observation)
    assert (result.reward.shape, result.reward.dtype) == ((), jnp.float32)
    costs = [(x.shape, x.dtype) for x in jax.tree.leaves(result.costs)]
    assert costs == [((len(env.costs),), jnp.float32)] * bool(env.costs)
    for flag in (result.terminated, result.truncated):
        assert (flag.shape, flag.dtype) == ((), bool)
    assert env.time_limit is None or env.time_limit > 0


def check_episodes(env):
    """Checks rollouts with a short time limit: ends, last observations, resets, keys."""
    env = env._replace(time_limit=TIME_LIMIT)
    act = lambda key, observations: random_actions(
        key, env.action, NUM_ENVS, split_mask(observations)[1]
    )
    start = jax.jit(lambda key: start_episodes(env, key, NUM_ENVS))
    run = jax.jit(lambda key, episodes: rollout(env, act, key, episodes, NUM_STEPS))
    episodes = start(jax.random.key(0))
    going_on, first = run(jax.random.key(1), episodes)
    _, second = run(jax.random.key(2), going_on)
    assert run._cache_size() == 1, "a second rollout compiled again"

    for trajectory in (first, second):
        check_trajectory(jax.tree.map(np.asarray, trajectory))
    np.testing.assert_array_equal(flat(second.observation, 2)[0], flat(going_on.observation))

    _, again = run(jax.random.key(1), start(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    _, other = run(jax.random.key(3), start(jax.random.key(0)))
    assert not np.array_equal(flat(first.next_observation, 2), flat(other.next_observation, 2))

    resets = np.concatenate([flat(start(jax.random.key(x)).observation) for x in range(16)])
    distinct = len(np.unique(resets, axis=0))
    starts = [flat_starts(first), flat_starts(second), resets[:NUM_ENVS]]
    if distinct > 1:  # Seaquest always starts in the same way
        assert all(len(np.unique(x, axis=0)) > 1 for x in starts), (
            "all episodes start in the same way"
        )
    if distinct > 4 * NUM_ENVS:  # Tetris has one start for each piece
        # Every rollout has different resets, even if they come from states made in advance.
        earlier, later = ({x.tobytes() for x in some} for some in starts[:2])
        assert len(later - earlier) > len(later) / 2, (
            "two rollouts start their episodes in the same way"
        )


def flat_starts(trajectory):
    """Returns the first observations of the episodes that started inside a rollout."""
    began = np.asarray(trajectory.done)[:-1]
    return flat(trajectory.observation, 2)[1:][began]


def check_trajectory(trajectory):
    """Checks that the ends and the observations of a rollout fit together."""
    assert np.isfinite(trajectory.reward).all()
    assert trajectory.done.any()
    assert (trajectory.truncated | (trajectory.length < TIME_LIMIT)).all()
    assert (trajectory.length <= TIME_LIMIT).all()
    assert (~trajectory.done).any()
    assert (trajectory.truncated & ~trajectory.terminated).any(), "no episode lasted"
    goes_on = ~trajectory.done[:-1]
    observations = flat(trajectory.observation, 2)[1:]
    following = flat(trajectory.next_observation, 2)[:-1]
    np.testing.assert_array_equal(following[goes_on], observations[goes_on])
    # The last observation of an episode is kept. It is rarely the first one of the next episode.
    assert (following[~goes_on] != observations[~goes_on]).any()
    np.testing.assert_array_equal(trajectory.length[1:][~goes_on], 1)
    assert (trajectory.length[1:][goes_on] == trajectory.length[:-1][goes_on] + 1).all()
