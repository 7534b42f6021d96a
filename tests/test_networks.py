import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax import networks
from trpo_jax.distributions import Categorical, DiagGaussian, Product
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import make_action_critic, make_critic, make_policy, orthogonal, tanh

VECTOR = ArraySpec((4,), np.dtype(np.float32))
BOX = Box(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32))


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 2), (9, 16), (1, 1)])
def test_orthogonal_matrices_are_orthogonal_for_many_seeds_at_once(shape):
    draw = jax.vmap(lambda key: orthogonal(2.0)(key, shape))
    matrices = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, 16)))(jax.random.key(0)))
    if shape[0] < shape[1]:
        matrices = matrices.transpose(0, 2, 1)
    gram = matrices.transpose(0, 2, 1) @ matrices
    np.testing.assert_allclose(gram, np.broadcast_to(4 * np.eye(min(shape)), gram.shape), atol=1e-5)
    assert len({np.round(m, 4).tobytes() for m in matrices}) == (16 if shape != (1, 1) else 2)


@pytest.mark.parametrize(
    ("action", "kind"),
    [(Discrete(3), Categorical), (MultiDiscrete((2, 3)), Product), (BOX, DiagGaussian)],
)
@pytest.mark.parametrize("shape", [(4,), (5, 3), (10, 10, 4)])
def test_every_action_space_gets_its_distribution_for_every_observation_shape(action, kind, shape):
    observation = ArraySpec(shape, np.dtype(np.int32))
    policy = make_policy(observation, action, hidden_sizes=(8,))
    critic = make_critic(observation, hidden_sizes=(8,))
    observations = np.ones((2, 3, *shape), np.int32)

    def results(key, observations):
        distribution = policy.apply(policy.init(key), observations)
        values = critic.apply(critic.init(key), observations)
        return distribution, distribution.entropy(), values

    distribution, entropy, values = jax.eval_shape(results, jax.random.key(0), observations)
    assert isinstance(distribution, kind)
    assert entropy.shape == (2, 3)
    assert values.shape == (2, 3)
    assert values.dtype == jnp.float32


def normal(seed, *shape):
    """Returns an array of random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_initial_policy_is_nearly_the_same_in_every_state():
    policy = make_policy(VECTOR, Discrete(3))
    entropies = jax.jit(lambda key, seen: policy.apply(policy.init(key), seen).entropy())
    assert entropies(jax.random.key(0), 3 * normal(1, 100, 4)).min() > 0.999 * np.log(3)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_log_std_starts_at_log_std_init(state_dependent_std):
    policy = make_policy(VECTOR, BOX, log_std_init=-0.7, state_dependent_std=state_dependent_std)
    initial = jax.jit(lambda key, seen: policy.apply(policy.init(key), seen))
    distribution = initial(jax.random.key(0), normal(1, 100, 4))
    log_std = np.asarray(distribution.log_std)
    np.testing.assert_allclose(log_std, -0.7, atol=0.15)
    varies = bool((log_std != log_std[0]).any())
    assert varies == state_dependent_std
    assert np.abs(distribution.mean).max() < 0.15


@functools.cache
def moved_policy(state_dependent_std):
    """Returns the program that moves all log standard deviations of a policy by a number."""
    policy = make_policy(VECTOR, BOX, state_dependent_std=state_dependent_std)

    @jax.jit
    def results(far, observations):
        params = policy.init(jax.random.key(0))
        move = lambda path, x: x + far * (x.shape == (2,) and "layers_1" in str(path))
        moved = jax.tree_util.tree_map_with_path(move, params)
        old, new = policy.apply(params, observations), policy.apply(moved, observations)
        actions = new.sample(jax.random.key(2))
        numbers = (new.log_prob(actions), new.entropy(), new.kl(old), old.kl(new))
        return new.log_std, (*numbers, *new.fisher_product(old))

    return results


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("far", [-1e3, -10.0, 10.0, 1e3])
def test_log_std_stays_within_its_bounds_and_the_distribution_is_finite(state_dependent_std, far):
    log_std, numbers = moved_policy(state_dependent_std)(far, normal(1, 50, 4))
    assert np.abs(log_std).max() <= 10
    assert np.abs(log_std).max() > 9.9
    assert all(np.isfinite(x).all() for x in numbers)


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 6)])
def test_the_action_joins_an_action_critic_before_the_last_hidden_layer(hidden_sizes):
    critic = make_action_critic(VECTOR, BOX, hidden_sizes=hidden_sizes)

    @jax.jit
    def results(key, observations, actions):
        params = critic.init(key)
        total = lambda *inputs: critic.apply(params, *inputs).sum()
        slopes = jax.grad(total, (0, 1))(observations, actions)
        return params, critic.apply(params, observations, actions), slopes

    actions = np.ones((2, 3, 2), np.float32)
    params, values, slopes = results(jax.random.key(0), normal(1, 2, 3, 4), actions)
    assert values.shape == (2, 3)
    for slope in slopes:
        assert np.all(np.asarray(slope) != 0)
    features = (4, *hidden_sizes[:-1])[-1]
    assert features + 2 in {x.shape[0] for x in jax.tree.leaves(params) if x.ndim == 2}


def test_images_are_convolved():
    policy = make_policy(ArraySpec((10, 10, 4), np.dtype(np.float32)), Discrete(3))

    @jax.jit
    def results(key, images):
        params = policy.init(key)
        convolved = jax.lax.conv_general_dilated(
            images,
            params["layers_0"]["Dense_0"]["kernel"].reshape(3, 3, 4, 16),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return params, convolved, policy.apply(params, images).logits

    found = results(jax.random.key(0), normal(1, 5, 10, 10, 4))
    params, expected, logits = jax.tree.map(np.asarray, found)
    assert params["layers_0"]["Dense_0"]["kernel"].shape == (36, 16)
    x = np.tanh(expected + params["layers_0"]["Dense_0"]["bias"]).reshape(5, -1)
    for name in ("Dense_1", "Dense_2"):
        x = np.tanh(x @ params["layers_0"][name]["kernel"] + params["layers_0"][name]["bias"])
    head = params["layers_1"]["Dense_0"]
    np.testing.assert_allclose(logits, x @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-6)


def test_an_action_space_without_a_distribution_is_refused():
    with pytest.raises(ConfigurationError, match="actions of type str"):
        inspect.unwrap(make_policy)(VECTOR, "buttons")


def test_patches_and_a_matrix_product_are_a_convolution():
    @jax.jit
    def results(images, kernel):
        expected = jax.lax.conv_general_dilated(
            images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return networks._patches(images, 8, 4) @ kernel.reshape(-1, 5), expected

    found, expected = results(normal(0, 2, 40, 37, 3), normal(1, 8, 8, 3, 5))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_large_images_see_two_convolutions():
    frames = ArraySpec((84, 84, 4), np.dtype(np.uint8))
    network = make_policy(frames, Discrete(3), hidden_sizes=(8,))
    shapes = jax.eval_shape(network.init, jax.random.key(0))["layers_0"]
    kernels = [shapes[f"Dense_{index}"]["kernel"].shape for index in range(3)]
    assert kernels == [(8 * 8 * 4, 16), (4 * 4 * 16, 32), (9 * 9 * 32, 8)]


def test_tanh_has_the_derivatives_of_the_hyperbolic_tangent(x64):
    x = np.linspace(-3.0, 3.0, 13)

    @jax.jit
    def derivatives(x):
        nth = lambda f: [jax.vmap(g)(x) for g in (f, jax.grad(f), jax.grad(jax.grad(f)))]
        return nth(tanh), nth(jnp.tanh)

    found, expected = derivatives(x)
    for order, absolute in enumerate((0, 0, 1e-15)):
        np.testing.assert_allclose(found[order], expected[order], rtol=1e-12, atol=absolute)
