import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.critic import explained_variance, fit_critic, init_critic


def linear(params, x):
    return x @ params["w"] + params["b"]


def test_fit_reaches_the_targets_of_a_linear_function():
    observations = jax.random.normal(jax.random.key(0), (64, 3))
    targets = observations @ jnp.array([1.0, -2.0, 0.5]) + 0.3
    critic = init_critic({"w": jnp.zeros(3), "b": jnp.zeros(())})
    fitted, loss = fit_critic(
        jax.random.key(1),
        linear,
        critic,
        observations,
        targets,
        learning_rate=0.05,
        epochs=100,
        minibatches=4,
    )
    assert loss < 1e-3
    np.testing.assert_allclose(fitted.params["w"], [1.0, -2.0, 0.5], atol=0.02)


def test_each_epoch_visits_every_sample_once_in_a_new_order():
    seen = []

    def spy(params, x):
        jax.debug.callback(lambda ids: seen.append(np.sort(ids)), x[:, 0])
        return params["b"] + 0 * x[:, 0]

    observations = jnp.arange(12.0)[:, None]
    fit_critic(
        jax.random.key(0),
        spy,
        init_critic({"b": jnp.zeros(())}),
        observations,
        jnp.zeros(12),
        learning_rate=0.1,
        epochs=2,
        minibatches=3,
    )
    jax.effects_barrier()
    batches = sorted({tuple(ids) for ids in seen})
    assert sorted(np.concatenate([list(ids) for ids in batches]).tolist()) == sorted(
        2 * list(range(12))
    )
    assert len(batches) == 6  # two different orders


def test_moments_survive_from_one_fit_to_the_next_and_the_rate_is_the_one_given():
    critic = init_critic({"w": jnp.zeros(3), "b": jnp.zeros(())})
    observations, targets = jnp.ones((8, 3)), jnp.ones(8)
    settings = {"epochs": 1, "minibatches": 1}
    once, _ = fit_critic(
        jax.random.key(0), linear, critic, observations, targets, learning_rate=0.01, **settings
    )
    np.testing.assert_allclose(once.params["w"], 0.01, rtol=1e-3)  # Adam's first step is its rate
    twice, _ = fit_critic(
        jax.random.key(0), linear, once, observations, targets, learning_rate=0.0, **settings
    )
    np.testing.assert_array_equal(twice.params["w"], once.params["w"])
    assert twice.optimizer[0].count == 2


def test_explained_variance():
    targets = jnp.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(explained_variance(targets, targets), 1)
    np.testing.assert_allclose(explained_variance(jnp.ones(3), targets), 0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(-targets, targets), -3, rtol=1e-5)
    np.testing.assert_allclose(explained_variance(targets, jnp.ones(3)), 0)
