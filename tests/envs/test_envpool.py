"""EnvPool. Its own resets would come one step later."""

from contextlib import closing

import numpy as np
import pytest

from trpo_jax import envs
from trpo_jax.envs.episodes import stagger
from trpo_jax.envs.specs import ArraySpec, Box
from trpo_jax.errors import ConfigurationError
from trpo_jax.host_rollout import advance_host_episodes, start_host_episodes

pytest.importorskip("envpool", reason="uv sync --extra envpool")
NUM_ENVS = 3


def transitions(env, seed, num_steps, staggered=False):
    generator = np.random.default_rng(0)
    with closing(env.open(seed, NUM_ENVS)) as pool:
        episodes = start_host_episodes(env, pool, NUM_ENVS)
        episodes = stagger(env, episodes) if staggered else episodes
        found = []
        for _ in range(num_steps):
            actions = generator.uniform(-1, 1, (NUM_ENVS, env.action.size)).astype(np.float32)
            episodes, transition = advance_host_episodes(env, pool, episodes, actions)
            found.append(transition)
    return found


def test_a_new_episode_starts_without_a_lost_step():
    env = envs.make("envpool/Hopper-v4")
    assert isinstance(env.action, Box)
    assert env.time_limit == 1000
    assert (env.observation.shape, env.observation.dtype) == ((11,), np.float32)
    found = transitions(env, 0, 150)
    ends = [(t, i) for t in range(149) for i in np.flatnonzero(found[t].terminated)]
    assert len(ends) > 3  # a hopper with random actions falls
    for t, i in ends:
        assert found[t].reward[i] != 0
        assert found[t + 1].length[i] == 1
        assert (
            found[t + 1].reward[i] != 0
        )  # a reset by EnvPool itself would be a step without reward
        # Each episode starts upright, and ends when the hopper is not upright.
        assert abs(found[t + 1].observation[i][1]) < 0.01 < abs(found[t].next_observation[i][1])
    for t in range(149):
        goes_on = ~found[t].done
        np.testing.assert_array_equal(
            found[t].next_observation[goes_on], found[t + 1].observation[goes_on]
        )


def test_a_time_limit_truncates():
    found = transitions(envs.make("envpool/Pendulum-v1"), 0, 201)
    np.testing.assert_array_equal([t.truncated.all() for t in found], np.arange(201) == 199)
    assert not any(t.terminated.any() for t in found)


def test_staggered_episodes_end_before_their_pool_would_end_them():
    found = transitions(envs.make("envpool/Pendulum-v1"), 0, 201, staggered=True)
    ends = np.argwhere([t.truncated for t in found])
    assert ends.tolist() == [[66, 2], [133, 1], [199, 0]]
    for t, i in ends:
        assert found[t + 1].length[i] == 1
        assert not np.array_equal(found[t + 1].observation[i], found[t].next_observation[i])


def test_the_seed_decides_the_episodes():
    env = envs.make("envpool/Hopper-v4")
    shown = lambda seed: np.array([t.observation for t in transitions(env, seed, 5)])
    np.testing.assert_array_equal(shown(1), shown(1))
    assert not np.array_equal(shown(1), shown(2))
    assert len(np.unique(shown(1)[0], axis=0)) == NUM_ENVS


def test_frames_of_atari_are_bytes_with_channels_last():
    env = envs.make("envpool/Breakout-v5")
    image = ArraySpec((84, 84, 4), np.dtype(np.uint8), channels_first=True)
    assert env.observation == image
    assert (env.action.num_actions, env.action.start) == (4, 0)
    with closing(env.open(0, NUM_ENVS)) as pool:
        first = pool.reset(np.ones(NUM_ENVS, bool))
        result = pool.step(np.ones(NUM_ENVS, np.int32))
    assert first.shape == result.observation.shape == (NUM_ENVS, 84, 84, 4)
    # The frames are stacked. Only the newest frame is new.
    np.testing.assert_array_equal(result.observation[..., :3], first[..., 1:])


def test_images_with_their_channels_last_are_kept():
    assert envs.make("envpool/CarRacing-v3").observation.shape == (96, 96, 3)


def test_the_time_limit_is_none_if_there_is_no_limit():
    assert envs.make("envpool/CliffWalking-v0").time_limit is None


def test_games_of_several_players_are_refused():
    with pytest.raises(ConfigurationError, match="needs 2 players"):
        envs.make("envpool/Go9x9-v1")


def test_unknown_names_and_drawings_that_need_a_screen_are_refused():
    with pytest.raises(ConfigurationError, match=r"Did you mean envpool/HalfCheetah-v"):
        envs.make("envpool/HalfCheetha-v4")
    with pytest.raises(ConfigurationError, match=r"--env gym/Hopper-v4"):
        envs.make("envpool/Hopper-v4").open(0, 1, render=True)
    with pytest.raises(ConfigurationError, match="needs a screen"):
        envs.make("envpool/CheetahRun-v1").open(0, 1, render=True)
