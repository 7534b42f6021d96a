import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from learning import SMALL

from trpo_jax import envs, kronecker
from trpo_jax.algorithms import trpo, trpo_vine, ua_trpo
from trpo_jax.envs.specs import ArraySpec, Box, Discrete, MultiDiscrete
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import dense_fisher, fisher_vector_product
from trpo_jax.kronecker import kronecker_preconditioner, with_layers
from trpo_jax.networks import make_policy
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import natural_step

DAMPING = 0.1
ONES = np.ones(3, np.float32)
VECTOR, IMAGE = ArraySpec((5,), np.dtype(np.float32)), ArraySpec((4, 4, 2), np.dtype(np.float32))
POLICIES = {
    "gaussian": (VECTOR, Box(-ONES, ONES)),
    "categorical": (VECTOR, Discrete(4)),
    "several categoricals": (VECTOR, MultiDiscrete((2, 3))),
    "image": (IMAGE, Discrete(4)),
}


def ones_of_layer(num_inputs, num_outputs):
    kernel, bias = np.ones((num_inputs, num_outputs), np.float32), np.ones(num_outputs, np.float32)
    return {"layer": {"kernel": kernel, "bias": bias}}


def random_params(network):
    """Returns parameters of a size as if trained."""
    rng = np.random.default_rng(0)
    size = lambda shape: 1 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3
    make = lambda x: np.float32(size(x.shape) * rng.normal(size=x.shape))
    return jax.tree.map(make, jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.usefixtures("x64")
def test_the_preconditioner_is_the_inverse_of_the_damped_kronecker_product():
    """The layer is applied at two places of each state, as in a convolution."""
    generator = np.random.default_rng(0)
    inputs, scores = generator.normal(size=(6, 2, 3)), generator.normal(size=(6, 2, 4))
    vector = {
        "layer": {"kernel": generator.normal(size=(3, 4)), "bias": generator.normal(size=4)},
        "free": generator.normal(size=2),
    }

    @jax.jit
    def solve(vector, inputs, scores):
        def log_probs(offsets):
            outputs = offsets.get(("layer",), jnp.zeros((6, 2, 4)))
            return jnp.sum(scores * outputs, axis=(1, 2)), {("layer",): inputs}

        return kronecker_preconditioner(log_probs, vector, DAMPING)(vector)

    solved = solve(vector, inputs, scores)
    rows = np.concatenate([inputs.reshape(12, 3), np.ones((12, 1))], axis=1)
    of_inputs, of_scores = rows.T @ rows / 6, scores.reshape(12, 4).T @ scores.reshape(12, 4) / 12
    ratio = np.sqrt((np.trace(of_inputs) / 4) / (np.trace(of_scores) / 4))
    damped = np.kron(
        of_inputs + ratio * np.sqrt(DAMPING) * np.eye(4),
        of_scores + np.sqrt(DAMPING) / ratio * np.eye(4),
    )
    both = np.concatenate([vector["layer"]["kernel"], vector["layer"]["bias"][None]]).ravel()
    expected = np.linalg.solve(damped, both).reshape(4, 4)
    np.testing.assert_allclose(solved["layer"]["kernel"], expected[:-1], rtol=1e-10)
    np.testing.assert_allclose(solved["layer"]["bias"], expected[-1], rtol=1e-10)
    np.testing.assert_allclose(solved["free"], vector["free"] / (1 + DAMPING), rtol=1e-12)


def test_a_layer_that_does_not_affect_the_policy_gives_finite_numbers():
    def log_probs(offsets):
        outputs = offsets.get(("layer",), jnp.zeros((6, 4)))
        return 0.0 * jnp.sum(outputs, axis=1), {("layer",): jnp.full((6, 3), 10.0)}

    solve = jax.jit(lambda vector: kronecker_preconditioner(log_probs, vector, DAMPING)(vector))
    solved = solve(ones_of_layer(3, 4))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(solved))


def test_the_preconditioner_of_one_layer_is_close_to_the_inverse_fisher_matrix():
    """The scores of a linear Gaussian policy do not depend on the observations."""
    network = make_policy(*POLICIES["gaussian"], hidden_sizes=())

    @jax.jit
    def there_and_back(params, observations, key):
        actions = network.apply(params, observations).sample(key)

        def log_probs(offsets):
            call = lambda: network.apply(params, observations)
            distribution, inputs = with_layers(call, offsets)
            return distribution.log_prob(actions), inputs

        vector = jax.tree.map(jnp.ones_like, params)
        product = fisher_vector_product(lambda p: network.apply(p, observations), params)(vector)
        return vector, kronecker_preconditioner(log_probs, params, 1e-6)(product)

    observations = np.random.default_rng(1).normal(size=(200_000, 5)).astype(np.float32)
    vector, back = there_and_back(random_params(network), observations, jax.random.key(0))
    layer = lambda tree: tree["layers_1"]["Dense_0"]
    chex.assert_trees_all_close(layer(back), layer(vector), rtol=0.02)


@pytest.mark.parametrize("name", POLICIES)
def test_a_preconditioned_solve_needs_fewer_iterations(name):
    damping = 1e-2
    observation, action = POLICIES[name]
    network = make_policy(observation, action, hidden_sizes=(16, 16))

    @jax.jit
    def steps(params, observations, weights, key):
        distribution_fn = lambda p: network.apply(p, observations)
        actions = distribution_fn(params).sample(key)

        def log_probs(offsets):
            distribution, inputs = with_layers(lambda: distribution_fn(params), offsets)
            return distribution.log_prob(actions), inputs

        objective = lambda p: jnp.mean(distribution_fn(p).log_prob(actions) * weights)
        gradient = jax.grad(objective)(params)
        product = fisher_vector_product(distribution_fn, params)

        def step(precondition):
            solve = damped_solver(
                product, damping=damping, num_iterations=5, precondition=precondition
            )
            return natural_step(gradient, solve, max_kl=0.01, damping=damping)

        flat, _ = ravel_pytree(gradient)
        preconditioned = step(kronecker_preconditioner(log_probs, params, damping))
        return step(None), preconditioned, flat, dense_fisher(distribution_fn, params)

    rng = np.random.default_rng(1)
    observations = rng.normal(size=(512, *observation.shape)).astype(np.float32)
    weights = rng.normal(size=512).astype(np.float32)
    results = steps(random_params(network), observations, weights, jax.random.key(0))
    plain, preconditioned, flat, fisher = jax.device_get(results)
    exact = np.linalg.solve(fisher + damping * np.eye(len(fisher), dtype=np.float32), flat)
    best = np.sqrt(2 * 0.01 * float(flat @ exact))
    assert 0.9 * best < preconditioned.predicted_gain <= 1.001 * best
    assert best - preconditioned.predicted_gain < (best - plain.predicted_gain) / 2
    assert preconditioned.cg_residual < plain.cg_residual


def test_each_seed_under_vmap_has_its_own_preconditioner():
    def scaled(scale, vector):
        inputs = {("layer",): scale * jnp.arange(12.0).reshape(6, 2)}

        def log_probs(offsets):
            outputs = offsets.get(("layer",), jnp.zeros((6, 2)))
            return jnp.sum(jnp.cos(jnp.arange(12.0).reshape(6, 2)) * outputs, axis=1), inputs

        return kronecker_preconditioner(log_probs, vector, DAMPING)(vector)

    scales, vector = np.array([0.5, 1.0, 2.0], np.float32), ones_of_layer(2, 2)
    together = jax.jit(jax.vmap(scaled, (0, None)))(scales, vector)
    one = jax.jit(scaled)
    for index, scale in enumerate(scales):
        of_seed = jax.tree.map(lambda x: np.asarray(x)[index], together)  # noqa: B023
        chex.assert_trees_all_close(of_seed, one(scale, vector), rtol=1e-5)


def test_a_large_factor_is_replaced_by_its_mean_eigenvalue(monkeypatch):
    inputs = scipy.linalg.hadamard(8)[:, 1:].astype(np.float32)  # all eigenvalues are 1
    scores = np.cos(np.arange(16.0, dtype=np.float32)).reshape(8, 2)

    def solve(vector, inputs):
        def log_probs(offsets):
            outputs = offsets.get(("layer",), jnp.zeros((8, 2)))
            return jnp.sum(scores * outputs, axis=1), {("layer",): inputs}

        return kronecker_preconditioner(log_probs, vector, DAMPING)(vector)

    exact = jax.jit(lambda *args: solve(*args))(ones_of_layer(7, 2), inputs)
    monkeypatch.setattr(kronecker, "LARGEST_FACTOR", 5)
    # Another function, so that JAX does not use the first program again.
    coarse = jax.jit(lambda *args: solve(*args))(ones_of_layer(7, 2), inputs)
    chex.assert_trees_all_close(exact, coarse, rtol=1e-5)


def test_scores_of_0_give_finite_numbers():
    def log_probs(offsets):
        return 0.0 * offsets.get(("layer",), jnp.zeros((6, 2))), {("layer",): jnp.ones((6, 2))}

    solve = jax.jit(lambda vector: kronecker_preconditioner(log_probs, vector, DAMPING)(vector))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(solve(ones_of_layer(2, 2))))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (trpo, {"exploration": "ou", "fisher_subsample": 2}),
        (ua_trpo, {}),
        (trpo_vine, {"num_states": 32, "num_branches": 3, "branch_steps": 4}),
    ],
)
def test_algorithms_find_the_same_direction_in_fewer_iterations(module, settings):
    env = envs.make("Pendulum-v1")

    make = lambda **solver: module.make(
        env, module.Config(**(SMALL | settings | solver), damping=1e-3)
    )
    plain, preconditioned = make(cg_iters=60), make(cg_iters=8, solver="kronecker")
    state = jax.jit(plain.init)(jax.random.key(0))
    name = "gradient_dot_direction"

    def metrics(algorithm):
        """Returns what the test needs, so that the rest of the update is not compiled."""

        @jax.jit
        def some_metrics(state):
            metrics = algorithm.update(state)[1]
            return {key: metrics[key] for key in (name, "cg_residual", "kl")}

        return some_metrics(state)

    expected, found = metrics(plain), metrics(preconditioned)
    np.testing.assert_allclose(found[name], expected[name], rtol=0.05)
    assert found["cg_residual"] < 0.5
    assert 0 < found["kl"] <= 0.01


def test_a_damping_of_0_raises_an_error():
    config = trpo.Config(solver="kronecker", damping=0.0)
    with pytest.raises(ConfigurationError, match="damping = 0"):
        trpo.make(envs.make("CartPole-v1"), config)
