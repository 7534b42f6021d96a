import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax.envs.episodes import stagger
from trpo_jax.envs.specs import Box, Discrete, MultiDiscrete
from trpo_jax.rollout import episode_metrics, random_actions, rollout, start_episodes

NUM_ENVS, NUM_STEPS = 3, 8


def collect(env, episodes=None, num_steps=NUM_STEPS):
    episodes = start_episodes(env, jax.random.key(0), NUM_ENVS) if episodes is None else episodes
    act = lambda key, observations: jax.random.randint(key, observations.shape[:1], 0, 2)
    return rollout(env, act, jax.random.key(1), episodes, num_steps)


@pytest.mark.parametrize(
    ("settings", "terminated", "truncated"),
    [
        ({"terminates_at": 3}, True, False),
        ({"time_limit": 3}, False, True),
        ({"terminates_at": 3, "time_limit": 3}, True, True),
    ],
)
def test_episodes_end_and_restart_and_keep_their_last_observation(settings, terminated, truncated):
    _, trajectory = collect(counter(**settings))
    first = jax.tree.map(lambda x: np.asarray(x[:, 0]), trajectory)
    np.testing.assert_array_equal(first.observation[:, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(first.next_observation[:, 0], [1, 2, 3, 1, 2, 3, 1, 2])
    ends = np.array([0, 0, 1, 0, 0, 1, 0, 0], bool)
    np.testing.assert_array_equal(first.terminated, ends & terminated)
    np.testing.assert_array_equal(first.truncated, ends & truncated)
    np.testing.assert_array_equal(first.length, [1, 2, 3, 1, 2, 3, 1, 2])
    np.testing.assert_array_equal(first.total_reward, [0, 10, 30, 0, 10, 30, 0, 10])
    np.testing.assert_array_equal(first.first, [1, 0, 0, 1, 0, 0, 1, 0])
    assert trajectory.reward.shape == (NUM_STEPS, NUM_ENVS)


def test_episodes_continue_from_one_rollout_to_the_next():
    env = counter(time_limit=5)
    episodes, _ = collect(env, num_steps=3)
    _, trajectory = collect(env, episodes, num_steps=3)
    np.testing.assert_array_equal(trajectory.observation[:, 1, 0], [3, 4, 0])
    np.testing.assert_array_equal(trajectory.total_reward[:, 1], [60, 100, 0])


def test_episode_metrics_are_means_over_the_episodes_that_ended():
    _, trajectory = collect(counter(time_limit=3))
    metrics = episode_metrics(trajectory)
    assert metrics["num_episodes"] == 2 * NUM_ENVS
    assert metrics["episodic_return"] == 30
    assert metrics["episode_length"] == 3
    _, trajectory = collect(counter(), num_steps=2)
    metrics = episode_metrics(trajectory)
    assert metrics["num_episodes"] == 0
    assert metrics["episodic_return"] == 0


def test_staggered_episodes_end_at_different_steps_and_only_whole_ones_count():
    env = counter(time_limit=6)
    episodes = stagger(env, start_episodes(env, jax.random.key(0), NUM_ENVS))
    _, trajectory = collect(env, episodes)
    assert trajectory.first[0].all()
    assert np.argwhere(trajectory.truncated).tolist() == [[1, 2], [3, 1], [5, 0], [7, 2]]
    metrics = episode_metrics(trajectory)
    assert metrics["num_episodes"] == 2
    assert metrics["episodic_return"] == 10 * sum(range(6))
    assert metrics["episode_length"] == 6
    assert stagger(counter(), episodes) is episodes


def test_each_step_and_environment_draws_its_own_action():
    _, trajectory = collect(counter(), num_steps=32)
    actions = np.asarray(trajectory.action)
    assert len({column.tobytes() for column in actions.T}) == NUM_ENVS
    assert len({row.tobytes() for row in actions}) > 1


def test_random_actions_are_uniform_among_the_legal_ones():
    bounds = np.full((2, 2), np.inf, np.float32)
    parts = {"a": Box(-bounds, bounds), "b": MultiDiscrete((2, 3)), "c": (Discrete(4),)}
    num = 30_000
    legal = np.array([True, True, False, True, True, True, False, False, True])
    mask = jnp.broadcast_to(legal, (num, 9))
    free, masked = (random_actions(jax.random.key(0), parts, num, x) for x in (None, mask))
    for actions, allowed in ((free, np.ones(9)), (masked, legal)):
        assert actions["a"].shape == (num, 4)
        np.testing.assert_allclose(actions["a"].std(axis=0), 1, atol=0.02)
        choices = (*actions["b"], *actions["c"])
        for choice, of_choice in zip(choices, np.split(allowed, [2, 5]), strict=True):
            shares = np.bincount(choice, minlength=len(of_choice)) / num
            np.testing.assert_allclose(shares, of_choice / of_choice.sum(), atol=0.015)
            assert not shares[of_choice == 0].any()
        rows = np.stack([*choices, *actions["a"].T]).astype(float)
        assert np.abs(np.corrcoef(rows) - np.eye(7)).max() < 0.03
