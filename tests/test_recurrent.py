"""Memory: cells match their formulas, and whole sequences match single steps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from trpo_jax.agent import build_policy
from trpo_jax.distributions import Categorical
from trpo_jax.envs.specs import ArraySpec, Box, Discrete
from trpo_jax.fisher import dense_fisher, fisher_vector_product
from trpo_jax.networks import Network
from trpo_jax.recurrent import (
    CELLS,
    Cell,
    from_linen_cell,
    gru,
    lstm,
    recurrent_network,
    remembers,
    restarted,
    without_memory,
)

VECTOR = ArraySpec((3,), np.dtype(np.float32))
ACTIONS = {
    "choice": Discrete(3),
    "numbers": Box(np.full(2, -1.0, np.float32), np.full(2, 1.0, np.float32)),
}
STEPS, ENVS, SIZE = 5, 2, 4
# Episodes start at the first step, in the middle, at the last step, and before the sequence.
FIRST = np.array([[1, 0], [0, 0], [0, 1], [1, 0], [0, 1]], bool)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def filled(tree, seed=1):
    """Returns the tree with random numbers in all of its arrays, also in biases."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.device_put(rng.normal(size=x.shape) / 2), tree)


def shapes(make, *args):
    """Returns the shapes of the arrays that a function makes."""
    return jax.eval_shape(lambda: make(*args))


def numbers(seed, *shape):
    """Returns an array of random numbers."""
    return jax.device_put(np.random.default_rng(seed).normal(size=shape))


def policy_with(memory, action="choice", **settings):
    """Returns a policy with a memory, its parameters, and the other arguments of `unroll`."""
    policy = build_policy(
        VECTOR,
        ACTIONS[action],
        hidden_sizes=(3,),
        activation="tanh",
        state_dependent_std=True,
        memory=memory,
        memory_size=SIZE,
        **settings,
    )
    params = filled(shapes(policy.init, jax.random.key(0)))
    carry = filled(shapes(policy.carry, ENVS), seed=2)
    return policy, params, (carry, numbers(3, STEPS, ENVS, 3), jax.device_put(FIRST))


def step_by_step(policy, params, carry, observations, first):
    """Returns the result of `unroll`, computed by single steps."""

    def step(carry, inputs):
        seen, starts = inputs
        carry = jax.tree.map(partial(jnp.where, starts[:, None]), policy.carry(ENVS), carry)
        return policy.step(params, carry, seen)

    return jax.lax.scan(step, carry, (observations, first))[1]


# --- cells


@pytest.mark.usefixtures("x64")
def test_a_gru_computes_its_formula():
    cell = gru(SIZE)
    params = filled(shapes(cell.init, jax.random.key(0), 3))
    h, x = numbers(2, ENVS, SIZE), numbers(3, ENVS, 3)
    step = jax.jit(lambda params, h, x: cell.step(params, h, cell.prepare(params, x)))
    carry, output = step(params, h, x)
    params, h, x = jax.tree.map(np.asarray, (params, h, x))
    w_r, w_z, w_n = np.split(params["kernel"], 3, axis=1)
    b_r, b_z, b_n = np.split(params["bias"], 3)
    u_r, u_z, u_n = np.split(params["recurrent"], 3, axis=1)
    r, z = sigmoid(x @ w_r + b_r + h @ u_r), sigmoid(x @ w_z + b_z + h @ u_z)
    n = np.tanh(x @ w_n + b_n + r * (h @ u_n + params["new_bias"]))
    np.testing.assert_allclose(output, (1 - z) * n + z * h, rtol=1e-12)
    np.testing.assert_array_equal(carry, output)


@pytest.mark.usefixtures("x64")
def test_an_lstm_computes_its_formula():
    cell = lstm(SIZE)
    params = filled(shapes(cell.init, jax.random.key(0), 3))
    c, h, x = numbers(1, ENVS, SIZE), numbers(2, ENVS, SIZE), numbers(3, ENVS, 3)
    step = jax.jit(lambda params, carry, x: cell.step(params, carry, cell.prepare(params, x)))
    (new_c, new_h), output = step(params, (c, h), x)
    params, c, h, x = jax.tree.map(np.asarray, (params, c, h, x))
    sums = x @ params["kernel"] + params["bias"] + h @ params["recurrent"]
    i, f, o, g = np.split(sums, 4, axis=1)
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(new_c, expected, rtol=1e-12)
    np.testing.assert_allclose(new_h, sigmoid(o) * np.tanh(expected), rtol=1e-12)
    np.testing.assert_array_equal(output, new_h)


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_the_initial_weights_of_cells_are_orthogonal_or_of_unit_scale(name, gates):
    cell = CELLS[name](64)
    init = jax.jit(lambda key: (cell.init(key, 100), cell.carry(2)))
    params, carry = jax.tree.map(np.asarray, init(jax.random.key(0)))
    blocks = np.split(params["recurrent"], gates, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(64), atol=1e-4)
    np.testing.assert_allclose(params["kernel"].std(), 0.1, rtol=0.05)
    biases = np.zeros(gates * 64)
    biases[64:128] = name == "lstm"  # the bias of the forget gate
    np.testing.assert_array_equal(params["bias"], biases)
    assert len({x.tobytes() for x in blocks}) > 1
    assert not any(x.any() for x in jax.tree.leaves(carry))


@pytest.mark.usefixtures("x64")
def test_a_gru_of_flax_gives_the_same_results_as_ours():
    theirs, ours = from_linen_cell(nn.GRUCell(SIZE), SIZE), gru(SIZE)
    params = filled(shapes(theirs.init, jax.random.key(0), 3))
    joined = lambda *names: np.concatenate([params[x]["kernel"] for x in names], axis=1)
    own = {
        "kernel": joined("ir", "iz", "in"),
        "bias": np.concatenate([params[x]["bias"] for x in ("ir", "iz", "in")]),
        "recurrent": joined("hr", "hz", "hn"),
        "new_bias": params["hn"]["bias"],
    }
    head = Network(lambda key: (), lambda params, x, seen: x)
    features = Network(lambda key: (), lambda params, x: x)
    observations = numbers(3, STEPS, ENVS, 3)
    outputs = []
    for cell, of_cell in ((theirs, params), (ours, own)):
        network = recurrent_network(features, 3, cell, head)
        whole = {"features": (), "cell": of_cell, "head": ()}
        carry = jax.tree.map(lambda x: np.asarray(x, np.float64), network.carry(ENVS))
        assert not carry.any()
        outputs.append(jax.jit(network.unroll)(whole, carry, observations, FIRST))
    for found, expected in zip(*map(jax.tree.leaves, outputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert outputs[0][0].shape == (STEPS, ENVS, 3 + SIZE)  # features, then the output of the cell


# --- whole sequences


@pytest.mark.usefixtures("x64")  # products of more rows are rounded differently
@pytest.mark.parametrize("memory", CELLS)
@pytest.mark.parametrize("action", ACTIONS)
def test_unroll_gives_the_same_distributions_as_single_steps(memory, action):
    policy, params, given = policy_with(memory, action)
    whole = jax.jit(policy.unroll)(params, *given)
    steps = jax.jit(partial(step_by_step, policy))(params, *given)
    for found, one in zip(whole, steps, strict=True):
        assert found.shape[:2] == (STEPS, ENVS)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, one, rtol=1e-12)


def test_unroll_returns_the_carry_after_each_step():
    add = Cell(
        1,
        lambda key, width: (),
        lambda num_envs: jnp.full((num_envs, 1), 100.0),
        lambda params, features: features,
        lambda params, carry, inputs: (carry + inputs, carry),
    )
    features = Network(lambda key: (), lambda params, x: x)
    head = Network(lambda key: (), lambda params, x, seen: x[:, 1])
    network = recurrent_network(features, 1, add, head)
    params = network.init(jax.random.key(0))
    rows = np.arange(1.0, 1 + STEPS * ENVS, dtype=np.float32).reshape(STEPS, ENVS, 1)
    start = np.full((ENVS, 1), 7.0, np.float32)
    outputs, carries = map(np.asarray, jax.jit(network.unroll)(params, start, rows, FIRST))
    # An episode starts with the carry of the cell. In between, the carry goes on.
    np.testing.assert_array_equal(outputs.T, [[100, 101, 104, 100, 107], [7, 9, 100, 106, 100]])
    np.testing.assert_array_equal(
        carries[..., 0].T, [[101, 104, 109, 107, 116], [9, 13, 106, 114, 110]]
    )


def test_the_carry_is_reset_where_an_episode_starts():
    fresh = lambda num_envs: (jnp.zeros((num_envs, 2, 2)), jnp.ones(num_envs))
    old = (np.full((3, 2, 2), 5.0, np.float32), np.full(3, 6.0, np.float32))
    restart = jax.jit(partial(restarted, fresh))
    carry = restart(np.array([False, True, False]), old)
    np.testing.assert_array_equal(np.asarray(carry[0])[:, 1, 0], [5, 0, 5])
    np.testing.assert_array_equal(carry[1], [6, 1, 6])


def test_a_network_remembers_if_its_carry_has_arrays():
    network = without_memory(Network(lambda key: (), lambda params, x: Categorical(x)))
    assert not remembers(network.carry)
    assert remembers(gru(1).carry)


@pytest.mark.parametrize("memory", CELLS)
def test_an_output_depends_on_all_steps_of_its_episode_so_far_and_on_nothing_else(memory):
    policy, params, (carry, observations, first) = policy_with(memory)

    @jax.jit
    def slopes(carry, observations):
        logits = lambda carry, observations: jnp.sum(
            policy.unroll(params, carry, observations, first).logits ** 2, axis=-1
        )
        of_carry, of_observations = jax.jacobian(logits, (0, 1))(carry, observations)
        total = lambda x: jnp.sum(jnp.abs(x.reshape(*x.shape[:3], -1)), axis=-1)
        of_carry = sum(total(x) for x in jax.tree.leaves(of_carry))
        return of_carry, jnp.sum(jnp.abs(of_observations), axis=-1)

    of_carry, of_observations = map(np.asarray, slopes(carry, observations))
    episode = np.cumsum(FIRST, axis=0)  # number of the episode; 0 began before the sequence
    for t, env in np.ndindex(STEPS, ENVS):
        same = (episode == episode[t, env]) & (np.arange(STEPS) <= t)[:, None]
        same &= np.arange(ENVS) == env
        np.testing.assert_array_equal(of_observations[t, env] != 0, same)
        began_before = (episode[t, env] == 0) & (np.arange(ENVS) == env)
        np.testing.assert_array_equal(of_carry[t, env] != 0, began_before)


@pytest.mark.parametrize("memory", CELLS)
def test_memory_checkpoint_changes_no_result(memory):
    policy, params, given = policy_with(memory)
    again, *_ = policy_with(memory, memory_checkpoint=True)

    def value_and_gradient(policy):
        loss = lambda params: jnp.sum(policy.unroll(params, *given).entropy())
        return jax.jit(jax.value_and_grad(loss))

    found, expected = (value_and_gradient(x)(params) for x in (again, policy))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert "remat" in str(jax.make_jaxpr(value_and_gradient(again))(params))
    assert "remat" not in str(jax.make_jaxpr(value_and_gradient(policy))(params))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("memory", CELLS)
@pytest.mark.parametrize("action", ACTIONS)
def test_fisher_vector_products_match_the_dense_matrix(memory, action):
    policy, params, given = policy_with(memory, action)

    @jax.jit
    def results(params, vector):
        _, unravel = ravel_pytree(params)
        product = fisher_vector_product(lambda p: policy.unroll(p, *given), params)
        found, _ = ravel_pytree(product(unravel(vector)))
        dense = dense_fisher(lambda p: step_by_step(policy, p, *given), params)
        return found, dense, unravel(jnp.diag(dense))

    size = sum(x.size for x in jax.tree.leaves(params))
    vector = np.random.default_rng(4).normal(size=size)
    found, dense, diagonal = results(params, vector)
    assert dense.dtype == jnp.float64
    np.testing.assert_allclose(found, np.asarray(dense) @ vector, rtol=1e-8, atol=1e-12)
    assert all(np.asarray(x).any() for x in jax.tree.leaves(diagonal["cell"]))
