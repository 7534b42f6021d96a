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
    keys = jax.random.split(jax.random.key(0), 16)
    matrices = np.asarray(jax.jit(jax.vmap(lambda k: orthogonal(2.0)(k, shape)))(keys))
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
    observations = jnp.ones((2, 3, *shape), jnp.int32)
    distribution = policy.apply(policy.init(jax.random.key(0)), observations)
    assert isinstance(distribution, kind)
    assert distribution.entropy().shape == (2, 3)
    values = critic.apply(critic.init(jax.random.key(0)), observations)
    assert values.shape == (2, 3)
    assert values.dtype == jnp.float32


def test_the_initial_policy_is_nearly_the_same_in_every_state():
    observations = jax.random.normal(jax.random.key(1), (100, 4)) * 3
    policy = make_policy(VECTOR, Discrete(3))
    distribution = policy.apply(policy.init(jax.random.key(0)), observations)
    assert distribution.entropy().min() > 0.999 * np.log(3)


@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_log_std_starts_at_log_std_init(state_dependent_std):
    policy = make_policy(VECTOR, BOX, log_std_init=-0.7, state_dependent_std=state_dependent_std)
    params = policy.init(jax.random.key(0))
    observations = jax.random.normal(jax.random.key(1), (100, 4))
    distribution = policy.apply(params, observations)
    np.testing.assert_allclose(distribution.log_std, -0.7, atol=0.15)
    varies = bool((distribution.log_std != distribution.log_std[0]).any())
    assert varies == state_dependent_std
    assert np.abs(distribution.mean).max() < 0.15


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("far", [-1e3, -10.0, 10.0, 1e3])
def test_log_std_stays_within_its_bounds_and_the_distribution_is_finite(state_dependent_std, far):
    policy = make_policy(VECTOR, BOX, state_dependent_std=state_dependent_std)
    observations = jax.random.normal(jax.random.key(1), (50, 4))
    params = policy.init(jax.random.key(0))
    move = lambda path, x: x + far * (x.shape == (2,) and "layers_1" in str(path))
    moved = jax.tree_util.tree_map_with_path(move, params)
    old, new = policy.apply(params, observations), policy.apply(moved, observations)
    assert np.abs(new.log_std).max() <= 10
    assert np.abs(new.log_std).max() > 9.9
    actions = new.sample(jax.random.key(2))
    numbers = (new.log_prob(actions), new.entropy(), new.kl(old), old.kl(new))
    numbers += tuple(new.fisher_product(old))
    assert all(np.isfinite(x).all() for x in numbers)


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 6)])
def test_the_action_joins_an_action_critic_before_the_last_hidden_layer(hidden_sizes):
    critic = make_action_critic(VECTOR, BOX, hidden_sizes=hidden_sizes)
    params = critic.init(jax.random.key(0))
    observations, actions = jax.random.normal(jax.random.key(1), (2, 3, 4)), jnp.ones((2, 3, 2))
    assert critic.apply(params, observations, actions).shape == (2, 3)
    for argnum in (0, 1):
        slope = jax.grad(lambda *inputs: critic.apply(params, *inputs).sum(), argnum)
        assert np.all(np.asarray(slope(observations, actions)) != 0)
    features = (4, *hidden_sizes[:-1])[-1]
    assert features + 2 in {x.shape[0] for x in jax.tree.leaves(params) if x.ndim == 2}


def test_images_are_convolved():
    policy = make_policy(ArraySpec((10, 10, 4), np.dtype(np.float32)), Discrete(3))
    params = policy.init(jax.random.key(0))
    kernel = params["layers_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (36, 16)
    images = jax.random.normal(jax.random.key(1), (5, 10, 10, 4))
    expected = jax.lax.conv_general_dilated(
        images,
        kernel.reshape(3, 3, 4, 16),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jnp.tanh(expected + params["layers_0"]["Dense_0"]["bias"]).reshape(5, -1)
    for name in ("Dense_1", "Dense_2"):
        x = jnp.tanh(x @ params["layers_0"][name]["kernel"] + params["layers_0"][name]["bias"])
    head = params["layers_1"]["Dense_0"]
    logits = policy.apply(params, images).logits
    np.testing.assert_allclose(logits, x @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-6)


def test_an_action_space_without_a_distribution_is_refused():
    with pytest.raises(ConfigurationError, match="actions of type str"):
        inspect.unwrap(make_policy)(VECTOR, "buttons")


def test_patches_and_a_matrix_product_are_a_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 40, 37, 3))
    kernel = jax.random.normal(jax.random.key(1), (8, 8, 3, 5))
    expected = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = networks._patches(images, 8, 4) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_large_images_see_two_convolutions():
    frames = ArraySpec((84, 84, 4), np.dtype(np.uint8))
    network = make_policy(frames, Discrete(3), hidden_sizes=(8,))
    shapes = jax.eval_shape(network.init, jax.random.key(0))["layers_0"]
    kernels = [shapes[f"Dense_{index}"]["kernel"].shape for index in range(3)]
    assert kernels == [(8 * 8 * 4, 16), (4 * 4 * 16, 32), (9 * 9 * 32, 8)]


def test_tanh_has_the_derivatives_of_the_hyperbolic_tangent(x64):
    x = jnp.linspace(-3.0, 3.0, 13)
    for own, other in ((tanh, jnp.tanh), (jax.grad(tanh), jax.grad(jnp.tanh))):
        np.testing.assert_allclose(jax.vmap(own)(x), jax.vmap(other)(x), rtol=1e-12)
    second = lambda f: jax.vmap(jax.grad(jax.grad(f)))(x)
    np.testing.assert_allclose(second(tanh), second(jnp.tanh), rtol=1e-12, atol=1e-15)
