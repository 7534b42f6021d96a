import itertools
import os
import signal
import time
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import counter

from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.envs.base import key_shape
from trpo_jax.envs.specs import ArraySpec
from trpo_jax.running.host_program import HostState
from trpo_jax.running.loop import (
    AgreedStop,
    Broken,
    NonFiniteError,
    Pace,
    broken_text,
    compile_program,
    finish,
    most_updates,
    next_count,
    resume_program,
    run_chunks,
    stop_if_interrupted,
)
from trpo_jax.running.program import RUNS_OFTEN, Health, Program, cpu_options

CONFIG = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "critic_minibatches": 2}


@pytest.fixture(scope="module")
def algorithm():
    return trpo.make(envs.make("CartPole-v1"), trpo.Config(**CONFIG))


def run(algorithm, seeds, updates_per_chunk, num_updates):
    return list(run_chunks(compile_program(algorithm, seeds, updates_per_chunk), num_updates))


shared = pytest.mark.xdist_group("loop")  # one worker, so that these runs are shared


@pytest.fixture(scope="module")
def together(algorithm):
    (chunk,) = run(algorithm, (3, 4), 6, 6)
    return chunk


@pytest.fixture(scope="module")
def alone(algorithm):
    (chunk,) = run(algorithm, (4,), 3, 3)
    return chunk


@shared
def test_a_run_does_not_depend_on_the_length_of_its_chunks(algorithm, together):
    parts = run(algorithm, (3, 4), 4, 6)  # the last chunk is shorter
    assert [(chunk.first_update, chunk.last_update) for chunk in parts] == [(1, 4), (5, 6)]
    assert parts[-1].seconds > parts[0].seconds > 0
    for name, values in together.metrics.items():
        joined = np.concatenate([chunk.metrics[name] for chunk in parts], axis=1)
        assert joined.shape == (2, 6)
        np.testing.assert_array_equal(joined, values, err_msg=name)
    chex.assert_trees_all_equal(parts[-1].actor, together.actor)


@shared
def test_a_seed_does_not_depend_on_parallel_seeds(together, alone):
    metrics = together.metrics
    np.testing.assert_allclose(metrics["kl"][1, :2], alone.metrics["kl"][0, :2], rtol=1e-3)
    assert abs(metrics["critic_loss"][0, 0] - metrics["critic_loss"][1, 0]) > 1e-6


@shared
def test_the_updates_equal_those_of_a_plain_loop(algorithm, alone):
    state = jax.jit(algorithm.init)(jax.random.key(4))
    update = jax.jit(algorithm.update)
    for index in range(3):
        state, metrics = update(state)
        np.testing.assert_allclose(alone.metrics["kl"][0, index], metrics["kl"], rtol=1e-3)
    new = jax.tree.leaves(alone.actor.policy_params)
    for a, b in zip(new, jax.tree.leaves(state.actor.policy_params), strict=True):
        np.testing.assert_allclose(a[0], b, rtol=1e-3, atol=1e-5)


def test_an_update_and_the_start_are_traced_once():
    made, traced = trpo.make(counter(), trpo.Config(**CONFIG)), []

    def init(key):
        traced.append("init")
        return made.init(key)

    def improve(state, trajectory):
        traced.append("improve")
        return state, (), {}

    own = made._replace(init=init, improve=improve, fit=lambda critic, _: (critic, {}))
    jax.eval_shape(own.init, key_shape())  # as the estimate of the memory does
    compile_program(own, (0, 1), 2)
    assert sorted(traced) == ["improve", "init"]


@pytest.mark.parametrize(("disabled", "expected"), [(False, RUNS_OFTEN), (True, None)])
def test_a_program_has_no_optimisations_if_the_user_has_switched_them_off(disabled, expected):
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", disabled)
    try:
        assert cpu_options() == expected
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_the_error_about_numbers_that_are_not_finite_names_updates_and_seeds():
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**CONFIG, critic_lr=1e38))
    chunks = []
    with pytest.raises(NonFiniteError, match=r"Seed 7 stopped: update \d+ gave") as caught:
        chunks.extend(run_chunks(compile_program(algorithm, (7, 8), 3), 150))
    assert all(np.isfinite(x).all() for chunk in chunks for x in jax.tree.leaves(chunk.actor))
    good = sum(chunk.metrics["kl"].shape[1] for chunk in chunks)
    assert f"update {good + 1:,} gave" in str(caught.value)


@pytest.mark.slow
def test_a_run_that_is_not_finite_keeps_earlier_updates_and_its_last_finite_actor():
    """The environment shows an infinite number to both seeds from step 36 on."""
    env = counter()

    def step(key, count, action):
        count, result = env.step(key, count, action)
        broken = jnp.where(count > 4 * 8 + 3, jnp.inf, result.observation)
        return count, result._replace(observation=broken)

    algorithm = trpo.make(env._replace(step=step), trpo.Config(**CONFIG))
    chunks = []
    with pytest.raises(NonFiniteError, match=r"Seed 4 stopped: .* counter .* step 4 of update 5\."):
        chunks.extend(run_chunks(compile_program(algorithm, (3, 4), 3), 12))
    assert [chunk.metrics["kl"].shape[1] for chunk in chunks] == [3, 1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(chunks[-1].actor))
    expected = run(algorithm, (3, 4), 4, 4)[0].actor
    for a, b in zip(*map(jax.tree.leaves, (chunks[-1].actor, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def breaking(number, ends):
    """Returns a counter that shows a number in its 11th step, and may terminate there."""
    env = counter()

    def step(key, count, action):
        count, result = env.step(key, count, action)
        breaks = count == 11
        observation = jnp.where(breaks, number, result.observation)
        return count, result._replace(observation=observation, terminated=breaks & ends)

    return trpo.make(env._replace(step=step), trpo.Config(**CONFIG))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "match"), [(np.nan, "component 0 is nan"), (-1e20, r"component 0 is -1e\+20")]
)
def test_the_error_names_an_observation_that_is_not_sound(number, match):
    with pytest.raises(NonFiniteError, match=rf"counter .*{match}, in step 3 of update 2\."):
        run(breaking(number, ends=False), (3, 4), 3, 3)


def in_parts(breaks):
    """Returns a counter that shows two arrays and a mask, changed from its 11th step on."""
    env = counter(width=2)

    def show(count, observation):
        parts = {
            "action_mask": jnp.ones(2, bool),
            "count": observation,
            "grid": jnp.zeros((2, 2)).at[1, 0].set(observation[0]),
        }
        return jax.tree.map(
            lambda own, new: jnp.where(count >= 11, new, own), parts, parts | breaks
        )

    def reset(key):
        count, observation = env.reset(key)
        return count, show(count, observation)

    def step(key, count, action):
        count, result = env.step(key, count, action)
        return count, result._replace(observation=show(count, result.observation))

    number = np.dtype(np.float32)
    spec = {
        "action_mask": ArraySpec((2,), np.dtype(bool)),
        "count": ArraySpec((2,), number),
        "grid": ArraySpec((2, 2), number),
    }
    changed = env._replace(reset=reset, step=step, observation=spec)
    return trpo.make(changed, trpo.Config(**CONFIG, normalize_observations=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks", "match"),
    [
        (
            {"grid": np.array([[0, 0], [0, np.inf]], np.float32)},
            r'whose component 3 in its part observation\["grid"\] is inf, in step 3 of',
        ),
        (
            {"action_mask": np.zeros(2, bool)},
            "showed an action_mask without a legal action, in step 4 of",
        ),
    ],
)
def test_the_error_names_the_part_of_an_observation_that_is_not_sound(breaks, match):
    with pytest.raises(NonFiniteError, match=rf"counter .*{match} update 2\."):
        run(in_parts(breaks), (3,), 3, 3)


@pytest.mark.slow
def test_an_episode_that_ends_with_an_unsound_observation_is_left_out():
    (chunk,) = run(breaking(np.nan, ends=True), (3,), 3, 3)
    assert chunk.health.finite.all()
    np.testing.assert_array_equal(chunk.metrics["broken_episodes"][0], [0, 2, 2])
    np.testing.assert_array_equal(chunk.metrics["num_episodes"][0], 0)


def test_chunks_end_at_the_ends_of_intervals():
    assert next_count(0, 100, 1024, (0, 0)) == 100
    assert next_count(0, 100, 7, (0, 10)) == 7
    assert next_count(7, 100, 7, (0, 10)) == 3
    assert next_count(12, 100, 50, (4, 10)) == 4
    assert next_count(98, 100, 50, (5,)) == 2
    assert (most_updates(1), most_updates(64), most_updates(2**14)) == (1024, 1024, 4)
    assert most_updates(10**6) == 1


def stub(advance, seeds=(0, 1), room=1000):
    """Returns a program of any number of updates that computes nothing."""

    def whole(state, count, alive):
        metrics, health = advance(state, count, alive)
        return SimpleNamespace(actor=np.zeros(len(seeds))), (metrics, health)

    return Program("stub", SimpleNamespace(actor=None), whole, seeds, room, 0.0)


def outputs(finite, broken_step=-1):
    steps, zeros = np.full(finite.shape, broken_step), np.zeros(finite.shape, int)
    health = Health(finite, steps, zeros, zeros.astype(float))
    return {"kl": np.ones(finite.shape, np.float32)}, health


def test_a_chunk_takes_a_certain_time_in_runs_of_any_length(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def advance(_, count, alive):
        nonlocal now
        now += 0.002 * count
        return outputs(np.ones((2, count), bool))

    chunks = itertools.islice(run_chunks(stub(advance), 10**9, pace=Pace(0.1)), 5)
    counts = [chunk.last_update - chunk.first_update + 1 for chunk in chunks]
    assert counts[0] == 1
    assert all(40 <= count <= 60 for count in counts[1:]), counts


def breaking_at(*at):
    """Returns a program in which seed s breaks at update `at[s]`, and a list of who was alive."""
    done, seen = 0, []

    def advance(_, count, alive):
        nonlocal done
        updates = np.arange(done + 1, done + count + 1)
        done += count
        seen.append(alive.tolist())
        return outputs((updates < np.array(at)[:, None]) & alive[:, None])

    return advance, seen


def test_a_seed_that_is_not_finite_stops_alone_and_for_good():
    advance, seen = breaking_at(99, 3)
    chunks = list(run_chunks(stub(advance, room=2), 6))
    kl = np.concatenate([chunk.metrics["kl"] for chunk in chunks], axis=1)
    np.testing.assert_array_equal(kl, [[1] * 6, [1, 1, *[np.nan] * 4]])
    assert seen == [[True, True], [True, True], [True, False]]
    assert [list(chunk.broken) for chunk in chunks] == [[], [1], [1]]
    assert chunks[-1].broken[1] == Broken(3, "update 3 gave numbers that are not finite")


def test_a_resumed_run_remembers_which_seeds_have_stopped():
    advance, seen = breaking_at(99, 99)
    before = {0: Broken(2, "it broke")}
    (chunk,) = run_chunks(stub(advance), 6, num_done=4, broken=before)
    assert seen == [[False, True]]
    assert chunk.broken == before
    assert np.isnan(chunk.metrics["kl"][0]).all()


def test_the_error_names_all_seeds_when_the_last_one_stops():
    advance, _ = breaking_at(3, 6)
    chunks = []
    with pytest.raises(NonFiniteError) as caught:
        chunks.extend(run_chunks(stub(advance, room=4), 12))
    assert [chunk.last_update for chunk in chunks] == [4, 5]
    for reason in ("Seed 0 stopped: update 3 gave", "Seed 1 stopped: update 6", "A smaller critic"):
        assert reason in str(caught.value)


def test_the_message_lists_some_seeds_and_counts_the_others():
    text = broken_text({seed: Broken(7, "the floor gave way") for seed in range(11)})
    assert text.count("stopped:") == 8
    assert text.endswith("3 more seeds stopped too.")


def interrupted_during(function):
    """Returns the result of `finish` if Ctrl-C comes while a function runs."""

    def run():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return function()

    return finish(run)


def test_ctrl_c_during_a_chunk_waits_for_its_end_and_loses_nothing():
    assert interrupted_during(lambda: "done") == "done"
    with pytest.raises(KeyboardInterrupt):
        stop_if_interrupted()
    stop_if_interrupted()  # each Ctrl-C is raised once

    def advance(_, count, alive):
        if len(chunks) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return outputs(np.ones((2, count), bool))

    chunks = []
    with pytest.raises(AgreedStop):
        for chunk in run_chunks(stub(advance, room=4), 100):
            chunks.append(chunk.last_update)
    assert chunks == [4, 8, 12]


def test_an_error_in_the_thread_of_finish_is_raised_by_finish():
    with pytest.raises(ZeroDivisionError):
        finish(lambda: 1 / 0)


def test_a_resumed_run_on_the_host_starts_its_episodes_again(algorithm):
    init = jax.jit(algorithm.init)
    fresh, saved = (init(jax.random.key(seed)) for seed in (0, 1))
    sums = np.full_like(saved.rollout.reward_sums, 99.0)
    saved = saved._replace(rollout=saved.rollout._replace(reward_sums=sums))
    program = Program("host", HostState(fresh.actor, (fresh,)), None, (0,), 1, 0.0)
    (resumed,) = resume_program(program, HostState(saved.actor, (saved,))).state.seeds
    assert resumed.rollout is fresh.rollout
    assert resumed.actor is saved.actor
    assert resumed.critic is saved.critic
