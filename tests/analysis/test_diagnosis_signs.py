import jax.numpy as jnp
import numpy as np
import pytest
from healthy_runs import STEPS_PER_UPDATE, healthy_run

from trpo_jax.algorithms import trpo
from trpo_jax.algorithms.checks import decay
from trpo_jax.algorithms.natural_gradient import kl_radius
from trpo_jax.analysis import diagnosis_signs as signs
from trpo_jax.envs import make

NAN = np.nan


@pytest.mark.parametrize("decay_steps", [0, 60_000, 75_000, 20_500])
def test_step_share_and_kl_bound_equal_those_of_the_training_code(decay_steps):
    run = healthy_run(decay_steps=decay_steps, max_kl=0.03)
    config = trpo.Config(decay_steps=decay_steps, max_kl=0.03)
    env = make("CartPole-v1")
    for update in (1, 2, 20, 21, 22, 60):
        before = jnp.int32(update - 1)
        share = decay(config, before, STEPS_PER_UPDATE)
        np.testing.assert_allclose(signs.step_share(run)[update - 1], share, rtol=1e-5)
        radius = kl_radius(env, config, before, STEPS_PER_UPDATE)
        np.testing.assert_allclose(signs.kl_bound(run)[update - 1], radius, rtol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [("ppo", {}), ("npg", {"normalized_step": False}), ("trpo", {"max_kl_per_dimension": True})],
)
def test_the_bound_of_some_algorithms_is_unknown(algorithm, config):
    run = healthy_run(algorithm, **config)
    assert signs.kl_bound(run) is None
    assert np.isnan(signs.kl_over_bound(run)).all()


def test_the_bound_per_dimension_counts_the_components_of_an_action():
    run = healthy_run(max_kl=0.005, max_kl_per_dimension=True)
    run.description["action_components"] = 6
    np.testing.assert_allclose(signs.kl_bound(run), 0.03)


def test_rejected_steps_do_not_count_in_the_kl_divergence():
    run = healthy_run(num_seeds=1, num_updates=4)
    run.metrics["step_rejected"] = np.array([[0.0, 1.0, 0.0, 1.0]])
    run.metrics["kl"] = np.array([[0.004, 0.0, 0.01, 0.0]])
    np.testing.assert_array_equal(signs.kl_over_bound(run), [[0.4, NAN, 1.0, NAN]])
    np.testing.assert_array_equal(signs.rejected_share(run, slice(0, 3)), [1 / 3])


def test_medians_and_means_ignore_nan():
    values = np.array([[1.0, NAN, 4.0, 3.0], [NAN] * 4])
    np.testing.assert_array_equal(signs.median(values), [3, NAN])
    np.testing.assert_array_equal(signs.median(values, axis=0), [1, NAN, 4, 3])
    np.testing.assert_array_equal(signs.mean(values), [8 / 3, NAN])


def test_progress_matches_numbers_by_hand():
    run = healthy_run(num_seeds=2, num_updates=20)
    # Each tenth has two updates, weighted by their episodes. No episode of the second seed ends.
    counts = np.tile([1.0, 3.0], (2, 10))
    returns = np.repeat([5.0, 1, 2, 9, 8, 8, 7, 6, 6, 5], 2) + np.tile([3.0, -1.0], 10)
    run.metrics["episodic_return"] = np.stack([returns, np.full(20, NAN)])
    run.metrics["num_episodes"] = counts * [[1], [0]]
    went = signs.progress(run)
    np.testing.assert_array_equal(went.gained, [8, NAN])  # from 1 to 9
    np.testing.assert_array_equal(went.lost, [4, NAN])  # from 9 to 5
    np.testing.assert_array_equal(went.moves, [1, NAN])  # 6, 6, 5
    np.testing.assert_array_equal(went.noise, [12, NAN])  # a change of 4, three times


def test_progress_ignores_tenths_without_episodes():
    run = healthy_run(num_seeds=1, num_updates=10)
    run.metrics["episodic_return"] = np.array([[NAN, 2, NAN, 1, 7, NAN, 3, 4, 4, 4]])
    run.metrics["num_episodes"] = np.array([[0.0, 1, 0, 1, 1, 0, 1, 1, 1, 1]])
    went = signs.progress(run)
    assert (went.gained[0], went.lost[0], went.moves[0]) == (6, 3, 0)


@pytest.mark.parametrize(
    ("entropy", "change"),
    [([2.0, 1.0, 0.5], -0.75), ([-2.0, -3.0, -4.0], -1.0), ([-0.1, 0.0, 0.4], 0.5)],
)
def test_the_change_of_the_entropy_is_a_share_of_the_first_entropy(entropy, change):
    run = healthy_run(num_seeds=1, num_updates=3)
    run.metrics["entropy"] = np.array([entropy])
    np.testing.assert_allclose(signs.entropy_change(run, slice(2, None)), [change])
