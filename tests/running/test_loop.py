import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.running.host_program import HostState
from trpo_jax.running.loop import (
    NonFiniteError,
    choose_chunk,
    compile_program,
    resume_program,
    run_chunks,
)
from trpo_jax.running.program import Program

CONFIG = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "critic_minibatches": 2}


@pytest.fixture(scope="module")
def algorithm():
    return trpo.make(envs.make("CartPole-v1"), trpo.Config(**CONFIG))


def run(algorithm, seeds, updates_per_chunk, num_updates):
    return list(run_chunks(compile_program(algorithm, seeds, updates_per_chunk), num_updates))


def test_a_run_does_not_depend_on_its_chunks(algorithm):
    whole = run(algorithm, (3, 4), 6, 6)
    parts = run(algorithm, (3, 4), 4, 6)  # the last one is shorter
    assert [(chunk.first_update, chunk.last_update) for chunk in parts] == [(1, 4), (5, 6)]
    assert parts[-1].seconds > parts[0].seconds > 0
    for name, values in whole[0].metrics.items():
        joined = np.concatenate([chunk.metrics[name] for chunk in parts], axis=1)
        assert joined.shape == (2, 6)
        np.testing.assert_array_equal(joined, values, err_msg=name)


def test_a_seed_does_not_depend_on_the_seeds_beside_it(algorithm):
    together = run(algorithm, (5, 6), 2, 2)[0].metrics
    alone = run(algorithm, (6,), 2, 2)[0].metrics
    np.testing.assert_allclose(together["kl"][1], alone["kl"][0], rtol=1e-3)
    assert abs(together["kl"][0, 0] - together["kl"][1, 0]) > 1e-6


def test_the_updates_are_those_of_the_plain_loop(algorithm):
    chunk = run(algorithm, (0,), 3, 3)[0]
    state = algorithm.init(jax.random.key(0))
    update = jax.jit(algorithm.update)
    for index in range(3):
        state, metrics = update(state)
        np.testing.assert_allclose(chunk.metrics["kl"][0, index], metrics["kl"], rtol=1e-3)
    new = jax.tree.leaves(chunk.actor.policy_params)
    for a, b in zip(new, jax.tree.leaves(state.actor.policy_params), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-5)


def test_numbers_that_are_not_finite_stop_the_run_with_update_and_seed_named():
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**CONFIG, critic_lr=1e38))
    chunks = []
    with pytest.raises(NonFiniteError, match=r"Update \d+ of seed [78] ") as caught:
        chunks.extend(run_chunks(compile_program(algorithm, (7, 8), 3), 150))
    assert all(np.isfinite(x).all() for chunk in chunks for x in jax.tree.leaves(chunk.actor))
    good = sum(chunk.metrics["kl"].shape[1] for chunk in chunks)
    assert f"Update {good + 1} of" in str(caught.value)


def test_a_run_that_breaks_keeps_every_update_before_and_its_last_good_actor():
    """The environment shows an infinite number to both seeds from step 36 on."""
    env = counter()

    def step(key, count, action):
        count, result = env.step(key, count, action)
        broken = jnp.where(count > 4 * 8 + 3, jnp.inf, result.observation)
        return count, result._replace(observation=broken)

    algorithm = trpo.make(env._replace(step=step), trpo.Config(**CONFIG))
    chunks = []
    with pytest.raises(NonFiniteError, match=r"counter .* step 4 of update 5 of seed 3"):
        chunks.extend(run_chunks(compile_program(algorithm, (3, 4), 3), 12))
    assert [chunk.metrics["kl"].shape[1] for chunk in chunks] == [3, 1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(chunks[-1].actor))
    expected = run(algorithm, (3, 4), 4, 4)[0].actor
    for a, b in zip(*map(jax.tree.leaves, (chunks[-1].actor, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def breaking(number, ends):
    """Returns a counter that shows a number in its 11th step, with which it terminates or not."""
    env = counter()

    def step(key, count, action):
        count, result = env.step(key, count, action)
        breaks = count == 11
        observation = jnp.where(breaks, number, result.observation)
        return count, result._replace(observation=observation, terminated=breaks & ends)

    return trpo.make(env._replace(step=step), trpo.Config(**CONFIG))


@pytest.mark.parametrize(
    ("number", "match"), [(jnp.nan, "component 0 is nan"), (-1e20, r"component 0 is -1e\+20")]
)
def test_an_observation_that_is_not_sound_is_named(number, match):
    with pytest.raises(
        NonFiniteError, match=rf"counter .*{match}, in step 3 of update 2 of seed 3"
    ):
        run(breaking(number, ends=False), (3, 4), 3, 3)


def test_an_episode_that_ends_with_such_an_observation_is_left_out():
    (chunk,) = run(breaking(jnp.nan, ends=True), (3,), 3, 3)
    assert chunk.health.finite.all()
    np.testing.assert_array_equal(chunk.metrics["broken_episodes"][0], [0, 2, 2])
    np.testing.assert_array_equal(chunk.metrics["num_episodes"][0], 0)


@pytest.mark.parametrize(
    ("num_updates", "expected"),
    [(1, 1), (48, 1), (99, 1), (487, 9), (1953, 39), (10**12, 2 * 10**10)],
)
def test_a_run_has_at_least_fifty_chunks(num_updates, expected):
    assert choose_chunk(num_updates) == expected


def test_chunks_end_where_intervals_do():
    assert choose_chunk(487, 6) == 6
    assert choose_chunk(487, 10, 15) == 5
    assert choose_chunk(487, 7, 3) == 1
    assert choose_chunk(10, 5) == 1


def test_a_run_on_the_host_goes_on_with_nothing_of_episodes_that_are_gone(algorithm):
    fresh, saved = (algorithm.init(jax.random.key(seed)) for seed in (0, 1))
    sums = jnp.full_like(saved.rollout.reward_sums, 99.0)
    saved = saved._replace(rollout=saved.rollout._replace(reward_sums=sums))
    program = Program("host", HostState(fresh.actor, (fresh,)), None, (0,), 1, 0.0)
    (resumed,) = resume_program(program, HostState(saved.actor, (saved,))).state.seeds
    assert resumed.rollout is fresh.rollout
    assert resumed.actor is saved.actor
    assert resumed.critic is saved.critic
