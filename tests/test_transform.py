import functools
import inspect
import os
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from problems import POLICIES, mlp, mlp_params, policies

from trpo_jax import (
    Categorical,
    DiagGaussian,
    kronecker_solver,
    levenberg_marquardt,
    natural_gradient,
    sample_space_solver,
    unmasked,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import dense_fisher, fisher_vector_product, outputs_that_depend
from trpo_jax.sample_space import MOST_OUTPUTS
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import (
    importance_sampled_surrogate,
    surrogate_gradient,
    trust_region_step,
)

pytestmark = pytest.mark.usefixtures("x64")

DAMPING = 1e-2


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, param_dtype=jnp.float64)(x))
        return nn.Dense(3, param_dtype=jnp.float64)(x)


@functools.cache
def classification(examples=20):
    """Returns parameters, their distributions and their loss, -log p of random labels."""
    rng = np.random.default_rng(0)
    inputs = jax.device_put(rng.normal(size=(examples, 4)))
    labels = jax.device_put(rng.integers(3, size=examples))
    distribution_fn = lambda params: Categorical(mlp(params, inputs))
    loss = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
    return mlp_params(1, (4, 5, 3)), distribution_fn, loss


def updated(optimizer, params, distribution_fn, loss, state=None, **extra):
    """Returns the update and the state after one step. Tests compile it with what they compare."""
    return optimizer.update(
        jax.grad(loss)(params),
        optimizer.init(params) if state is None else state,
        params,
        distribution_fn=distribution_fn,
        value_fn=loss,
        **extra,
    )


def flat(tree):
    """Returns all numbers of a tree in one NumPy array."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def dense_system(params, distribution_fn, loss):
    """Returns the gradient and the dense Fisher matrix."""
    gradient, _ = ravel_pytree(jax.grad(loss)(params))
    return gradient, dense_fisher(distribution_fn, params)


def assert_dense_step(updates, system, **tolerances):
    """Checks that an update is the step of a dense solve to the edge of the region."""
    gradient, fisher = map(np.asarray, system)
    damped = fisher + DAMPING * np.eye(len(fisher))
    x = np.linalg.solve(damped, -gradient)
    expected = x * np.sqrt(2 * 0.01 / (x @ damped @ x))
    np.testing.assert_allclose(flat(updates), expected, **tolerances)


@pytest.mark.parametrize("name", POLICIES)
def test_the_update_equals_the_dense_natural_step(name):
    params, distribution_fn, actions = policies(0)[name]
    loss = lambda p: -jnp.mean(distribution_fn(p).log_prob(actions))

    @jax.jit
    def results(params):
        found = []
        for solver in (None, sample_space_solver):
            optimizer = natural_gradient(0.01, DAMPING, 200, solver=solver)
            updates, state = updated(optimizer, params, distribution_fn, loss)
            new = optax.apply_updates(params, updates)
            kl = distribution_fn(params).kl(distribution_fn(new)).mean()
            found.append((updates, state.info, kl, loss(params) - loss(new)))
        return found, dense_system(params, distribution_fn, loss)

    found, system = results(params)
    for updates, info, kl, gain in found:
        assert_dense_step(updates, system, rtol=1e-6, atol=1e-9)
        assert info.residual < 1e-8
        np.testing.assert_allclose(info.kl, kl, rtol=1e-9)
        np.testing.assert_allclose(info.gain, gain, rtol=1e-9)


def test_the_sample_space_solver_handles_gradients_outside_the_range_of_f():
    params, distribution_fn, loss = classification(examples=4)  # 12 outputs, 43 parameters
    decayed = lambda p: loss(p) + optax.tree.norm(p, squared=True)
    optimizer = natural_gradient(0.01, DAMPING, 1, solver=sample_space_solver)

    @jax.jit
    def results(params):
        problem = params, distribution_fn, decayed
        return updated(optimizer, *problem), dense_system(*problem)

    (updates, state), system = results(params)
    assert_dense_step(updates, system, rtol=1e-6, atol=1e-9)
    assert state.info.residual < 1e-8


@pytest.mark.parametrize("whole", [True, False])
def test_the_kronecker_solver_finds_the_dense_step_of_a_linen_model(whole):
    as_variables = (lambda p: p) if whole else (lambda p: {"params": p})
    optimizer = natural_gradient(0.01, DAMPING, 60, solver=kronecker_solver)
    rng = np.random.default_rng(0)

    @jax.jit
    def results(key, inputs, labels):
        variables = Net().init(key, inputs)
        params = variables if whole else variables["params"]
        distribution_fn = lambda p: Categorical(Net().apply(as_variables(p), inputs))
        loss = lambda p: -jnp.mean(distribution_fn(p).log_prob(labels))
        problem = params, distribution_fn, loss
        return updated(optimizer, *problem)[0], dense_system(*problem)

    inputs, labels = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    assert_dense_step(*results(jax.random.key(1), inputs, labels), rtol=1e-5, atol=1e-8)
    params, *functions = classification()
    with pytest.raises(ConfigurationError, match="kronecker_solver needs a model of Dense layers"):
        jax.eval_shape(lambda params: updated(optimizer, params, *functions), params)


@pytest.mark.parametrize("name", ["product", "recurrent"])  # together, they have all parts
def test_the_update_is_exactly_the_step_of_trpo(name):
    params, distribution_fn, actions = policies(0)[name]
    advantages = jax.device_put(np.random.default_rng(2).normal(size=(2, 3)))
    surrogate = importance_sampled_surrogate(actions, advantages)
    optimizer = natural_gradient(0.05, 0.1, 10, line_search_steps=10, line_search_shrink=0.8)

    @jax.jit
    def results(params):
        old = distribution_fn(params)
        updates, state = optimizer.update(
            jax.tree.map(jnp.negative, surrogate_gradient(params, distribution_fn, surrogate)),
            optimizer.init(params),
            params,
            distribution_fn=distribution_fn,
            value_fn=lambda p: -surrogate(distribution_fn(p), old),
        )
        solve = damped_solver(
            fisher_vector_product(distribution_fn, params), damping=0.1, num_iterations=10
        )
        expected = trust_region_step(
            params,
            distribution_fn,
            surrogate,
            solve,
            max_kl=0.05,
            damping=0.1,
            line_search_steps=10,
            line_search_shrink=0.8,
        )
        return optax.apply_updates(params, updates), state.info, *expected

    new, found, expected, info = results(params)
    assert info.step_fraction > 0
    chex.assert_trees_all_equal(new, expected)
    assert found.kl == info.kl
    assert found.gain == info.surrogate_gain
    assert found.fraction == info.step_fraction


def test_one_gauss_newton_step_solves_linear_regression():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    distribution_fn = lambda p: DiagGaussian(inputs @ p["w"], jnp.zeros((30, 2)))
    loss = lambda p: -jnp.mean(distribution_fn(p).log_prob(jnp.asarray(targets)))
    expected = np.linalg.lstsq(inputs, targets)[0]
    for solver in (None, sample_space_solver):
        optimizer = natural_gradient(jnp.inf, 1e-9, 20, learning_rate=1.0, solver=solver)
        step = jax.jit(lambda p, optimizer=optimizer: updated(optimizer, p, distribution_fn, loss))
        params = {"w": np.ones((4, 2))}
        updates, state = step(params)
        np.testing.assert_allclose(params["w"] + updates["w"], expected, atol=1e-6)
        np.testing.assert_allclose(state.info.gain_predicted, state.info.gain, rtol=1e-6)
        np.testing.assert_allclose(state.info.kl_predicted, state.info.kl, rtol=1e-6)


def test_the_natural_gradient_of_a_coin_is_known():
    theta = 0.7
    distribution_fn = lambda t: Categorical(jnp.stack([t, jnp.zeros(())])[None])
    loss = lambda t: -distribution_fn(t).log_prob(jnp.array([0]))[0]
    optimizer = natural_gradient(jnp.inf, 0.0, 1, learning_rate=0.1)
    step = jax.jit(lambda theta: updated(optimizer, theta, distribution_fn, loss))
    updates, state = step(np.float64(theta))
    p = 1 / (1 + np.exp(-theta))
    np.testing.assert_allclose(updates, 0.1 / p, rtol=1e-12)  # (1 - p) / (p (1 - p))
    np.testing.assert_allclose(state.info.curvature, p * (1 - p), rtol=1e-12)


def test_the_learning_rate_and_the_radius_both_bound_a_step():
    params, *functions = classification()
    settings = [
        {"max_kl": 0.01},
        {"max_kl": jnp.inf, "learning_rate": 1.0},
        {"max_kl": 0.01, "learning_rate": 1.0},
        {"max_kl": 0.01, "learning_rate": 1e-3},
    ]
    optimizers = [natural_gradient(damping=DAMPING, **x) for x in settings]
    steps = jax.jit(lambda params: [updated(x, params, *functions)[0] for x in optimizers])
    region, newton, both, short = (np.linalg.norm(flat(x)) for x in steps(params))
    np.testing.assert_allclose(both, min(region, newton))
    np.testing.assert_allclose(short, 1e-3 * newton)
    assert 1e-3 * newton < region < newton


def test_the_step_does_not_depend_on_the_parameters_of_a_layer():
    params, distribution_fn, loss = classification(examples=200)
    matrix = np.random.default_rng(5).normal(size=(5, 5)) + 2 * np.eye(5)
    optimizer = natural_gradient(0.01, 1e-10, 300)

    def original(changed):
        first, second = changed
        return [first, {"w": matrix @ second["w"], "b": second["b"]}]

    @jax.jit
    def results(params):
        changed = [params[0], {"w": np.linalg.inv(matrix) @ params[1]["w"], "b": params[1]["b"]}]
        updates, _ = updated(optimizer, params, distribution_fn, loss)
        others, _ = updated(
            optimizer, changed, lambda p: distribution_fn(original(p)), lambda p: loss(original(p))
        )
        plain = jax.grad(lambda p: loss(original(p)))(changed)
        after = lambda p: jax.nn.log_softmax(distribution_fn(p).logits)
        expected = after(optax.apply_updates(params, updates))
        found = after(original(optax.apply_updates(changed, others)))
        rate = optax.tree.norm(updates) / optax.tree.norm(plain)
        descend = lambda p, g: jax.tree.map(lambda x, y: x - rate * y, p, g)
        straight = after(descend(params, jax.grad(loss)(params)))
        return after(params), expected, found, straight, after(original(descend(changed, plain)))

    before, expected, found, straight, other = map(np.asarray, results(params))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    move = np.abs(expected - before).max()
    assert move > 0.1
    # The step along the plain gradient does depend on them.
    assert np.abs(straight - other).max() > 0.05


def test_momentum_keeps_the_last_direction_where_the_batch_gives_no_information():
    params, distribution_fn, loss = classification()
    optimizer = natural_gradient(jnp.inf, DAMPING, 200, learning_rate=0.5, momentum=0.9)

    @jax.jit
    def results(params):
        updates, state = updated(optimizer, params, distribution_fn, loss)
        new = optax.apply_updates(params, updates)
        second = updated(optimizer, new, distribution_fn, loss, state)
        return state.direction, second, dense_system(new, distribution_fn, loss)

    first, (updates, state), system = results(params)
    gradient, fisher = map(np.asarray, system)
    # x minimises g.x + x F x / 2 + damping / 2 |x - 0.9 first|^2
    x = np.linalg.solve(
        fisher + DAMPING * np.eye(len(fisher)), -gradient + DAMPING * 0.9 * flat(first)
    )
    np.testing.assert_allclose(flat(state.direction), x, atol=1e-8)
    np.testing.assert_allclose(flat(updates), 0.5 * x, atol=1e-8)
    np.testing.assert_allclose(state.info.kl_predicted, 0.125 * x @ fisher @ x, rtol=1e-6)
    predicted = -0.5 * gradient @ x - 0.125 * x @ fisher @ x
    np.testing.assert_allclose(state.info.gain_predicted, predicted, rtol=1e-6)


def test_a_search_that_finds_no_step_does_not_change_the_parameters():
    params, distribution_fn, loss = classification()
    optimizer = natural_gradient(0.01, line_search_steps=3)

    @jax.jit
    def results(params):
        updates, state = optimizer.update(
            jax.grad(lambda params: -loss(params))(params),  # uphill
            optimizer.init(params),
            params,
            distribution_fn=distribution_fn,
            value_fn=loss,
        )
        return optax.apply_updates(params, updates), state

    new, state = results(params)
    chex.assert_trees_all_equal(new, params)
    assert state.info.fraction == state.info.gain == state.info.kl == 0


def test_the_search_shortens_a_step_that_is_too_long():
    params, *functions = classification()
    search = natural_gradient(20.0, DAMPING, 50, line_search_steps=10)
    plain = natural_gradient(20.0, DAMPING, 50)
    steps = jax.jit(lambda params: [updated(x, params, *functions) for x in (search, plain)])
    (updates, state), (whole, _) = steps(params)
    assert 0 < state.info.fraction < 1
    assert state.info.kl <= 20.0
    assert state.info.gain > 0
    fraction = np.asarray(state.info.fraction)
    chex.assert_trees_all_close(updates, jax.tree.map(lambda x: fraction * np.asarray(x), whole))


def test_examples_with_weight_0_do_not_count():
    params, distribution_fn, loss = classification(examples=20)
    first_ten = lambda p: Categorical(distribution_fn(p).logits[:10])
    mask = (np.arange(20) < 10).astype(float)
    for solver in (None, sample_space_solver):
        optimizer = natural_gradient(0.01, DAMPING, 100, solver=solver)

        @jax.jit
        def results(params, weights, scale, optimizer=optimizer):
            scaled = lambda p: scale * loss(p)
            weighted = updated(optimizer, params, distribution_fn, scaled, weights=weights)
            return weighted, updated(optimizer, params, first_ten, loss)

        (updates, state), (expected, expected_state) = results(params, mask, 1.0)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(state.info.kl, expected_state.info.kl, rtol=1e-6)
        (nothing, _), _ = results(params, np.zeros(20), 0.0)
        assert np.linalg.norm(flat(nothing)) == 0


def test_the_rule_of_levenberg_and_marquardt_changes_the_damping():
    rule = jax.jit(levenberg_marquardt(2.0, smallest=0.1))
    after = lambda damping, ratio: float(rule(np.float64(damping), np.float64(ratio)))
    assert after(1.0, 0.9) == 0.5
    assert after(1.0, 0.5) == 1.0
    assert after(1.0, 0.2) == after(1.0, -3.0) == after(1.0, np.nan) == 2.0
    assert after(0.15, 1.0) == 0.1


def test_the_rule_changes_the_damping_of_the_next_update():
    params, *functions = classification()
    optimizer = natural_gradient(
        jnp.inf, 1.0, 50, learning_rate=1.0, damping_rule=levenberg_marquardt(2.0)
    )
    step = jax.jit(lambda params, state: updated(optimizer, params, *functions, state))
    _, state = step(params, jax.jit(optimizer.init)(params))
    assert state.info.damping == 1.0
    ratio = np.asarray(state.info.gain) / np.asarray(state.info.gain_predicted)
    assert ratio > 0.75
    assert state.damping == 0.5
    _, state = step(params, state)
    assert state.info.damping == 0.5


def test_schedules_and_injected_hyperparameters_work():
    params, *functions = classification()
    schedule = optax.linear_schedule(0.01, 0.0, 2)
    scheduled = natural_gradient(schedule, lambda count: DAMPING)

    injected = optax.inject_hyperparams(
        natural_gradient, static_args=("cg_iters", "line_search_steps")
    )(max_kl=0.5, damping=DAMPING)

    @jax.jit
    def results(params, max_kl):
        _, state = updated(scheduled, params, *functions)
        updates, _ = updated(scheduled, params, *functions, state)
        state = injected.init(params)
        state.hyperparams["max_kl"] = max_kl
        others, _ = updated(injected, params, *functions, state)
        expected, _ = updated(natural_gradient(0.005, DAMPING), params, *functions)
        return updates, others, expected

    updates, others, expected = results(params, 0.005)
    chex.assert_trees_all_close(updates, expected)
    chex.assert_trees_all_close(others, expected)
    unchecked = inspect.unwrap(natural_gradient)  # without the type checks of the tests
    with pytest.raises(ConfigurationError, match="name cg_iters in static_args"):
        optax.inject_hyperparams(unchecked)(max_kl=0.5).init(params)


def test_it_works_with_other_optax_transforms():
    params, distribution_fn, loss = classification()
    chained = optax.chain(natural_gradient(), optax.add_decayed_weights(-0.1))
    every_second = optax.MultiSteps(natural_gradient(), 2)
    finite = optax.apply_if_finite(natural_gradient(), 3)

    @jax.jit
    def results(params):
        problem = params, distribution_fn, loss
        plain, _ = updated(natural_gradient(), *problem)
        decayed, _ = updated(chained, *problem)
        first, state = updated(every_second, *problem)
        second, _ = updated(every_second, *problem, state)
        not_finite = updated(finite, params, distribution_fn, lambda p: jnp.nan * loss(p))
        return plain, decayed, first, second, not_finite

    plain, decayed, first, second, (updates, state) = results(params)
    expected = jax.tree.map(lambda x, p: np.asarray(x) - 0.1 * np.asarray(p), plain, params)
    chex.assert_trees_all_close(decayed, expected)
    assert np.linalg.norm(flat(first)) == 0
    chex.assert_trees_all_close(second, plain, rtol=1e-5)
    assert np.linalg.norm(flat(updates)) == 0 and state.total_notfinite == 1


def test_a_masked_part_of_the_parameters_is_updated_as_if_it_were_all():
    params, distribution_fn, loss = classification()
    is_adapter = [jax.tree.map(lambda _: True, params[0]), jax.tree.map(lambda _: False, params[1])]
    masked = optax.masked(natural_gradient(0.01, DAMPING, 50), is_adapter)

    @jax.jit
    def results(params):
        whole = lambda part: unmasked(part, params)
        updates, _ = masked.update(
            jax.grad(loss)(params),
            masked.init(params),
            params,
            distribution_fn=lambda p: distribution_fn(whole(p)),
            value_fn=lambda p: loss(whole(p)),
        )
        expected, _ = updated(
            natural_gradient(0.01, DAMPING, 50),
            params[0],
            lambda p: distribution_fn([p, params[1]]),
            lambda p: loss([p, params[1]]),
        )
        return updates, expected

    updates, expected = results(params)
    chex.assert_trees_all_close(updates[0], expected)


def test_vmap_scan_and_jit_give_the_results_of_single_steps():
    params, distribution_fn, loss = classification()
    optimizer = natural_gradient(damping=DAMPING, line_search_steps=3, solver=sample_space_solver)
    traces = []

    def step(carry, max_kl):
        traces.append(None)
        params, state = carry
        updates, state = updated(
            natural_gradient(max_kl, DAMPING, line_search_steps=3, solver=sample_space_solver),
            params,
            distribution_fn,
            loss,
            state,
        )
        return (optax.apply_updates(params, updates), state), state.info

    step = jax.jit(step)
    start = (params, jax.jit(optimizer.init)(params))
    radii = np.array([0.01, 0.003])
    carry, infos = start, []
    for radius in radii:
        carry, info = step(carry, radius)
        infos.append(info)
    assert len(traces) == 1
    scanned, scanned_infos = jax.lax.scan(step, start, radii)
    chex.assert_trees_all_close(scanned, carry, atol=1e-12)
    chex.assert_trees_all_close(
        scanned_infos, jax.tree.map(lambda *x: np.stack(x), *infos), atol=1e-12
    )
    (several, _), _ = jax.vmap(step, in_axes=(None, 0))(start, radii)
    first = step(start, radii[1])[0][0]
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: np.asarray(x)[1], several), first, atol=1e-12
    )


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from trpo_jax import Categorical, natural_gradient

inputs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
optimizer = natural_gradient(0.01)

@jax.jit
def step(params, inputs):
    f = lambda p: Categorical(jnp.tanh(inputs @ p["w"]) @ p["v"])
    g = jax.grad(lambda p: -jnp.mean(f(p).log_prob(jnp.argmax(inputs[:, :3], axis=1))))(params)
    return optimizer.update(g, optimizer.init(params), params, distribution_fn=f)[0]

params = {"w": np.full((4, 5), 0.5), "v": np.arange(15.0).reshape(5, 3) / 15}
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("examples",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("examples"))
several = step(params, jax.device_put(inputs, split))
assert len(several["w"].sharding.device_set) == 4
for name, one in step(params, inputs).items():
    assert np.abs(one).max() > 1e-3
    np.testing.assert_allclose(several[name], one, rtol=1e-4, atol=1e-7)
"""


def test_several_devices_give_the_step_of_one_device():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    result = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_the_optimizer_of_nnx_trains_a_module_of_nnx():
    with jax.enable_x64(False):
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(20, 4)).astype(np.float32)
        labels = rng.integers(3, size=20, dtype=np.int32)

        @nnx.jit
        def make():
            model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            return model, nnx.Optimizer(model, natural_gradient(1e-4, 1e-4), wrt=nnx.Param)

        @nnx.jit
        def train(model, optimizer, inputs, labels):
            graph, _ = nnx.split(model)
            distribution_fn = lambda params: Categorical(nnx.merge(graph, params)(inputs))
            loss = lambda model: -jnp.mean(Categorical(model(inputs)).log_prob(labels))
            before = loss(model)
            optimizer.update(model, nnx.grad(loss)(model), distribution_fn=distribution_fn)
            return before, loss(model)

        model, optimizer = make()
        before, after = train(model, optimizer, inputs, labels)
        assert after < before
        np.testing.assert_allclose(optimizer.opt_state.info.kl[...], 1e-4, rtol=0.1)


def test_leaves_that_are_none_and_half_precision_work():
    params, distribution_fn, loss = classification()
    tree = {"net": params, "frozen": None}  # such a tree comes from equinox.filter
    step = lambda tree: updated(
        natural_gradient(), tree, lambda p: distribution_fn(p["net"]), lambda p: loss(p["net"])
    )
    updates, _ = jax.jit(step)(tree)
    assert updates["frozen"] is None
    with jax.enable_x64(False):
        half = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params)
        inputs = np.ones((3, 4), jnp.bfloat16)
        f = lambda p: Categorical(mlp(p, inputs).astype(jnp.float32))
        step = lambda half: updated(natural_gradient(), half, f, lambda p: f(p).logits.sum())
        updates, state = jax.jit(step)(half)
        chex.assert_trees_all_equal_dtypes(updates, half)
        assert state.info.kl.dtype == jnp.float32


def test_no_array_has_the_size_of_classes_times_classes():
    classes, width = 50_000, 4
    params = {"w": np.zeros((width, classes), np.float32)}
    inputs = np.ones((3, 5, width), np.float32)
    distribution_fn = lambda p: Categorical(inputs @ p["w"])
    optimizer = natural_gradient()
    step = lambda p: optimizer.update(
        p, optimizer.init(p), p, distribution_fn=distribution_fn, weights=jnp.ones((3, 5))
    )
    assert largest_array(jax.make_jaxpr(step)(params).jaxpr) == 15 * classes
    with pytest.raises(ConfigurationError, match=f"allows at most {MOST_OUTPUTS:,}"):
        jax.eval_shape(
            lambda p: updated(
                natural_gradient(solver=sample_space_solver),
                p,
                distribution_fn,
                lambda p: p["w"].sum(),
            ),
            params,
        )


def largest_array(jaxpr):
    """Returns the size of the largest array in a program."""
    sizes = [x.aval.size for equation in jaxpr.eqns for x in equation.outvars]
    inner = []
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            value = getattr(value, "jaxpr", value)
            inner += [largest_array(value)] if hasattr(value, "eqns") else []
    return max([*sizes, *inner])


WRONG_FUNCTIONS = {
    "distribution_fn is missing": None,
    "distribution_fn = 3": 3,
    "cannot be evaluated at the parameters": lambda params: Categorical(params["missing"]),
    "returns a .*Tracer|returns a ShapeDtypeStruct": lambda params: params[0]["w"],
    "same distribution for all parameters": lambda params: Categorical(jnp.zeros((2, 3))),
}


@pytest.mark.parametrize("message", WRONG_FUNCTIONS)
def test_a_function_without_a_distribution_raises_an_error(message):
    gradients = params = mlp_params(1, (4, 5, 3))
    optimizer = natural_gradient()
    with pytest.raises(ConfigurationError, match=message):
        optimizer.update(
            gradients,
            optimizer.init(params),
            params,
            distribution_fn=WRONG_FUNCTIONS[message],
        )


def test_missing_parameters_and_losses_raise_an_error():
    params, distribution_fn, _ = classification()
    gradients = params
    optimizer = natural_gradient(line_search_steps=3)
    state = optimizer.init(params)
    with pytest.raises(ConfigurationError, match="needs the parameters"):
        optimizer.update(gradients, state, distribution_fn=distribution_fn)
    with pytest.raises(ConfigurationError, match="line_search_steps > 0 needs value_fn"):
        optimizer.update(gradients, state, params, distribution_fn=distribution_fn)
    optimizer = natural_gradient(damping_rule=levenberg_marquardt())
    with pytest.raises(ConfigurationError, match="damping_rule needs value_fn"):
        optimizer.update(gradients, state, params, distribution_fn=distribution_fn)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_kl": 0.0}, "max_kl = 0.0 has to be above 0"),
        ({"max_kl": np.nan}, "max_kl = nan"),
        ({"max_kl": np.inf}, "max_kl = inf without a learning_rate"),
        ({"damping": -1.0}, "damping = -1.0 has to be at least 0"),
        ({"cg_iters": 0}, "cg_iters = 0 has to be at least 1"),
        ({"cg_iters": 2.5}, "cg_iters = 2.5 has to be a Python int"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"momentum": 1.0}, r"momentum = 1.0 has to be in \[0, 1\)"),
        ({"line_search_shrink": 1.0}, "line_search_shrink = 1.0"),
        (
            {"damping": lambda count: 1.0, "damping_rule": levenberg_marquardt()},
            "damping is a schedule",
        ),
    ],
)
def test_numbers_that_cannot_work_raise_an_error(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(natural_gradient)(**settings)


def test_outputs_that_depend_on_parameters_are_found():
    f = lambda p: (p["a"] * 2, jnp.ones(3), jnp.sin(jnp.ones(2)), {"x": jnp.ones(2) @ p["b"]})
    params = {"a": jnp.ones(()), "b": jnp.ones((2, 2))}
    assert outputs_that_depend(f, params) == [True, False, False, True]
