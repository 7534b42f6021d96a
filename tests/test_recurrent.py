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


def filled(tree, dtype=jnp.float32, seed=1):
    """Returns the tree with random numbers in all of its arrays, also in biases."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        jax.random.normal(k, x.shape, dtype) / 2 for k, x in zip(keys, leaves, strict=True)
    )


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
    dtype = jnp.zeros(0).dtype
    params = filled(jax.eval_shape(policy.init, jax.random.key(0)), dtype)
    carry = filled(policy.carry(ENVS), dtype, seed=2)
    observations = jax.random.normal(jax.random.key(3), (STEPS, ENVS, 3), dtype)
    return policy, params, (carry, observations, jnp.asarray(FIRST))


def step_by_step(policy, params, carry, observations, first):
    """Returns the result of `unroll`, computed by single steps."""
    found, step = [], jax.jit(policy.step)
    for seen, starts in zip(observations, first, strict=True):
        carry = jax.tree.map(partial(jnp.where, starts[:, None]), policy.carry(ENVS), carry)
        carry, distribution = step(params, carry, seen)
        found.append(distribution)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *found)


# --- cells


@pytest.mark.usefixtures("x64")
def test_a_gru_computes_its_formula():
    cell = gru(SIZE)
    params = filled(cell.init(jax.random.key(0), 3), jnp.float64)
    h, x = (jax.random.normal(jax.random.key(n), (ENVS, n)) for n in (SIZE, 3))
    carry, output = cell.step(params, h, cell.prepare(params, x))
    w_r, w_z, w_n = np.split(np.asarray(params["kernel"]), 3, axis=1)
    b_r, b_z, b_n = np.split(np.asarray(params["bias"]), 3)
    u_r, u_z, u_n = np.split(np.asarray(params["recurrent"]), 3, axis=1)
    r, z = sigmoid(x @ w_r + b_r + h @ u_r), sigmoid(x @ w_z + b_z + h @ u_z)
    n = np.tanh(x @ w_n + b_n + r * (h @ u_n + params["new_bias"]))
    np.testing.assert_allclose(output, (1 - z) * n + z * h, rtol=1e-12)
    np.testing.assert_array_equal(carry, output)


@pytest.mark.usefixtures("x64")
def test_an_lstm_computes_its_formula():
    cell = lstm(SIZE)
    params = filled(cell.init(jax.random.key(0), 3), jnp.float64)
    c, h = jax.random.normal(jax.random.key(1), (2, ENVS, SIZE))
    x = jax.random.normal(jax.random.key(2), (ENVS, 3))
    (new_c, new_h), output = cell.step(params, (c, h), cell.prepare(params, x))
    sums = np.asarray(x @ params["kernel"] + params["bias"] + h @ params["recurrent"])
    i, f, o, g = np.split(sums, 4, axis=1)
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(new_c, expected, rtol=1e-12)
    np.testing.assert_allclose(new_h, sigmoid(o) * np.tanh(expected), rtol=1e-12)
    np.testing.assert_array_equal(output, new_h)


@pytest.mark.parametrize(("name", "gates"), [("gru", 3), ("lstm", 4)])
def test_the_initial_weights_of_cells_are_orthogonal_or_of_unit_scale(name, gates):
    params = CELLS[name](64).init(jax.random.key(0), 100)
    for block in jnp.split(params["recurrent"], gates, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(64), atol=1e-4)
    np.testing.assert_allclose(params["kernel"].std(), 0.1, rtol=0.05)
    biases = np.zeros(gates * 64)
    biases[64:128] = name == "lstm"  # the bias of the forget gate
    np.testing.assert_array_equal(params["bias"], biases)
    assert len({np.asarray(x).tobytes() for x in jnp.split(params["recurrent"], gates, axis=1)}) > 1
    assert not any(x.any() for x in jax.tree.leaves(CELLS[name](64).carry(2)))


@pytest.mark.usefixtures("x64")
def test_a_gru_of_flax_gives_the_same_results_as_ours():
    theirs, ours = from_linen_cell(nn.GRUCell(SIZE), SIZE), gru(SIZE)
    params = filled(theirs.init(jax.random.key(0), 3), jnp.float64)
    joined = lambda *names: jnp.concatenate([params[x]["kernel"] for x in names], axis=1)
    own = {
        "kernel": joined("ir", "iz", "in"),
        "bias": jnp.concatenate([params[x]["bias"] for x in ("ir", "iz", "in")]),
        "recurrent": joined("hr", "hz", "hn"),
        "new_bias": params["hn"]["bias"],
    }
    head = Network(lambda key: (), lambda params, x, seen: x)
    features = Network(lambda key: (), lambda params, x: x)
    observations = jax.random.normal(jax.random.key(1), (STEPS, ENVS, 3))
    outputs = []
    for cell, of_cell in ((theirs, params), (ours, own)):
        network = recurrent_network(features, 3, cell, head)
        whole = {"features": (), "cell": of_cell, "head": ()}
        carry = jax.tree.map(lambda x: x.astype(jnp.float64), network.carry(ENVS))
        assert not carry.any()
        outputs.append(network.unroll(whole, carry, observations, jnp.asarray(FIRST)))
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
    for found, one in zip(whole, step_by_step(policy, params, *given), strict=True):
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
    rows = jnp.arange(1.0, 1 + STEPS * ENVS).reshape(STEPS, ENVS, 1)
    outputs, carries = network.unroll(params, jnp.full((ENVS, 1), 7.0), rows, jnp.asarray(FIRST))
    # An episode starts with the carry of the cell. In between, the carry goes on.
    np.testing.assert_array_equal(outputs.T, [[100, 101, 104, 100, 107], [7, 9, 100, 106, 100]])
    np.testing.assert_array_equal(
        carries[..., 0].T, [[101, 104, 109, 107, 116], [9, 13, 106, 114, 110]]
    )


def test_the_carry_is_reset_where_an_episode_starts():
    fresh = lambda num_envs: (jnp.zeros((num_envs, 2, 2)), jnp.ones(num_envs))
    old = (jnp.full((3, 2, 2), 5.0), jnp.full(3, 6.0))
    carry = restarted(fresh, jnp.array([False, True, False]), old)
    np.testing.assert_array_equal(carry[0][:, 1, 0], [5, 0, 5])
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
    flat, unravel = ravel_pytree(params)
    vector = jax.random.normal(jax.random.key(4), flat.shape)
    product = jax.jit(fisher_vector_product(lambda p: policy.unroll(p, *given), params))
    dense = dense_fisher(lambda p: step_by_step(policy, p, *given), params)
    assert dense.dtype == jnp.float64
    found, _ = ravel_pytree(product(unravel(vector)))
    np.testing.assert_allclose(found, dense @ vector, rtol=1e-8, atol=1e-12)
    felt = jax.tree.map(jnp.any, unravel(jnp.diag(dense)))
    assert all(jax.tree.leaves(felt["cell"]))
