"""Recurrent networks. They carry a memory from one step to the next.

A cell is the recurrent part alone. `recurrent_network` puts a cell between a network for features
and a network for outputs. To act, `step` computes one step. To learn, `unroll` computes whole
sequences. It computes the features and the outputs of all steps at once. Only the part that needs
the carry is a scan over time.

The carry is reset before the first step of each episode. `first` marks these steps. Gradients and
Fisher-vector products differentiate the scan like any other function. They need first derivatives
only.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from trpo_jax.networks import Network, orthogonal, over_two_axes

Params = PyTree[Array]
Carry = PyTree[Array]


class Cell(NamedTuple):
    """The recurrent part of a network.

    Attributes:
        size: the width of its output.
        init: `(key, width of the features) -> params`.
        carry: `num_envs -> carry`. Returns the carry before the first step of an episode. Each of
            its arrays has the leading axis `[B]`.
        prepare: `(params, features [N, F]) -> inputs [N, ...]`. Computes the part of a step that
            does not need the carry.
        step: `(params, carry, inputs [B, ...]) -> (carry, output [B, size])`.

    Examples:
        >>> def step(params, carry, inputs):
        ...     output = jnp.tanh(carry + inputs)
        ...     return output, output
        >>> cell = trpo_jax.Cell(
        ...     size=8,
        ...     init=lambda key, num_features: jax.random.normal(key, (num_features, 8)),
        ...     carry=lambda num_envs: jnp.zeros((num_envs, 8)),
        ...     prepare=lambda params, features: features @ params,
        ...     step=step,
        ... )
        >>> params = cell.init(jax.random.key(0), 4)
        >>> carry, output = cell.step(
        ...     params, cell.carry(3), cell.prepare(params, jnp.ones((3, 4)))
        ... )
        >>> output.shape
        (3, 8)
    """

    size: int
    init: Callable[[PRNGKeyArray, int], Params]
    carry: Callable[[int], Carry]
    prepare: Callable[[Params, Float[Array, "N F"]], PyTree[Array]]
    step: Callable[[Params, Carry, PyTree[Array]], tuple[Carry, Float[Array, "B W"]]]


class RecurrentNetwork(NamedTuple):
    """A network with a carry. If the network has no memory, its carry is `()`.

    Attributes:
        init: `key -> params`.
        carry: `num_envs -> carry`. Returns the carry before the first step of an episode. Each of
            its arrays has the leading axis `[B]`.
        step: `(params, carry, observations [B, ...]) -> (carry, outputs [B])`.
        unroll: `(params, carry, observations [T, B, ...], first [T, B]) -> (outputs [T, B], carries
            [T, B, ...])`. The carries are the memory after each step.

    Examples:
        >>> def step(params, carry, x):
        ...     return carry + x, carry + x
        >>> def unroll(params, carry, xs, first):
        ...     def one_step(carry, inputs):
        ...         first, x = inputs
        ...         carry = jnp.where(first, 0.0, carry) + x
        ...         return carry, (carry, carry)
        ...     return jax.lax.scan(one_step, carry, (first, xs))[1]
        >>> network = trpo_jax.RecurrentNetwork(
        ...     init=lambda key: (), carry=lambda num_envs: jnp.zeros(num_envs),
        ...     step=step, unroll=unroll,
        ... )
        >>> first = jnp.array([[True], [False], [True]])
        >>> outputs, carries = network.unroll((), network.carry(1), jnp.ones((3, 1)), first)
        >>> outputs[:, 0]
        Array([1., 2., 1.], dtype=float32)
    """

    init: Callable[[PRNGKeyArray], Params]
    carry: Callable[[int], Carry]
    step: Callable[[Params, Carry, Any], tuple[Carry, Any]]
    unroll: Callable[[Params, Carry, Any, Bool[Array, "T B"]], tuple[Any, Carry]]


def gru(size: int) -> Cell:
    """Returns a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), n = tanh(W_n x + r (U_n h + b)). The
    next h is (1 - z) n + z h. It is also the output. Each W has a bias too.

    Args:
        size: the width of h.

    Examples:
        >>> cell = trpo_jax.gru(8)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> inputs = cell.prepare(params, jnp.ones((3, 4)))
        >>> carry, output = cell.step(params, cell.carry(3), inputs)
        >>> output.shape
        (3, 8)
    """

    def step(params, h, inputs):
        reset_in, update_in, new_in = jnp.split(inputs, 3, axis=-1)
        reset_h, update_h, new_h = jnp.split(h @ params["recurrent"], 3, axis=-1)
        reset, update = nn.sigmoid(reset_in + reset_h), nn.sigmoid(update_in + update_h)
        new = jnp.tanh(new_in + reset * (new_h + params["new_bias"]))
        h = (1 - update) * new + update * h
        return h, h

    def init(key, num_features):
        params = _gates(key, num_features, size, 3)
        return params | {"new_bias": jnp.zeros(size, jnp.float32)}

    zeros = lambda num_envs: jnp.zeros((num_envs, size), jnp.float32)
    return Cell(size, init, zeros, _affine, step)


def lstm(size: int) -> Cell:
    """Returns a long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate.

    i, f, o = sigmoid(W x + U h), each with its own weights, and g = tanh(W_g x + U_g h). The next c
    is f c + i g. The next h is o tanh(c). It is also the output. The initial bias of the forget
    gate is 1 (Gers et al. 2000).

    Args:
        size: the width of c and of h.

    Examples:
        >>> cell = trpo_jax.lstm(8)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> inputs = cell.prepare(params, jnp.ones((3, 4)))
        >>> (c, h), output = cell.step(params, cell.carry(3), inputs)
        >>> c.shape, output.shape
        ((3, 8), (3, 8))
    """

    def step(params, carry, inputs):
        c, h = carry
        gates = inputs + h @ params["recurrent"]
        enter, forget, leave, new = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(forget) * c + nn.sigmoid(enter) * jnp.tanh(new)
        h = nn.sigmoid(leave) * jnp.tanh(c)
        return (c, h), h

    def init(key, num_features):
        params = _gates(key, num_features, size, 4)
        return params | {"bias": params["bias"].at[size : 2 * size].set(1.0)}

    def zeros(num_envs):
        return tuple(jnp.zeros((num_envs, size), jnp.float32) for _ in range(2))

    return Cell(size, init, zeros, _affine, step)


def from_linen_cell(cell: nn.RNNCellBase, size: int) -> Cell:
    """Returns a recurrent cell of flax linen.

    Args:
        cell: `(carry, features [B, F]) -> (carry, output [B, size])`.
        size: the width of its output.

    Examples:
        >>> import flax.linen as nn
        >>> cell = trpo_jax.from_linen_cell(nn.SimpleCell(8), 8)
        >>> params = cell.init(jax.random.key(0), 4)
        >>> carry, output = cell.step(params, cell.carry(3), jnp.ones((3, 4)))
        >>> output.shape
        (3, 8)
    """
    default = getattr(type(cell), "recurrent_kernel_init", None)
    if default is not None and cell.recurrent_kernel_init is default:
        # The QR decompositions of the default can wait for each other forever. See `orthogonal`.
        cell = cell.clone(recurrent_kernel_init=orthogonal(1.0))
    carry = lambda num_envs: cell.initialize_carry(jax.random.key(0), (num_envs, size))
    return Cell(
        size,
        lambda key, width: cell.init(key, carry(1), jnp.zeros((1, width)))["params"],
        carry,
        lambda params, features: features,
        lambda params, carry, features: cell.apply({"params": params}, carry, features),
    )


def recurrent_network(
    features: Network,
    num_features: int,
    cell: Cell,
    head: Network,
    checkpoint: bool = False,
) -> RecurrentNetwork:
    """Returns a recurrent network made of a network for features, a cell and a head.

    The head sees the features and the output of the cell, joined along the last axis.

    Args:
        features: `(params, observations [N, ...]) -> features [N, F]`.
        num_features: F.
        cell: the recurrent part.
        head: `(params, [N, F + cell.size], observations [N, ...]) -> outputs`. Most heads use
            only the mask of legal actions from the observations, or nothing.
        checkpoint: whether derivatives compute the values inside the cell a second time, instead
            of storing them for all steps (`jax.checkpoint`).

    Examples:
        >>> network = trpo_jax.recurrent_network(
        ...     trpo_jax.Network(lambda key: (), lambda params, observations: observations),
        ...     num_features=4,
        ...     cell=trpo_jax.gru(8),
        ...     head=trpo_jax.Network(
        ...         init=lambda key: jnp.zeros((4 + 8, 2)),
        ...         apply=lambda params, x, observations: trpo_jax.Categorical(x @ params),
        ...     ),
        ... )
        >>> params = network.init(jax.random.key(0))
        >>> carry, distributions = network.step(params, network.carry(3), jnp.ones((3, 4)))
        >>> distributions.logits.shape
        (3, 2)
    """
    cell_step = jax.checkpoint(cell.step) if checkpoint else cell.step

    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "features": features.init(keys[0]),
            "cell": cell.init(keys[1], num_features),
            "head": head.init(keys[2]),
        }

    def before(params, observations):
        seen = features.apply(params["features"], observations)
        return seen, cell.prepare(params["cell"], seen)

    def after(params, seen, remembered, observations):
        joined = jnp.concatenate([seen, remembered], axis=-1)
        return head.apply(params["head"], joined, observations)

    def step(params, carry, observations):
        seen, inputs = before(params, observations)
        carry, remembered = cell_step(params["cell"], carry, inputs)
        return carry, after(params, seen, remembered, observations)

    def unroll(params, carry, observations, first):
        seen, inputs = over_two_axes(before)(params, observations)

        def one_step(carry, step_inputs):
            first, inputs = step_inputs
            carry = restarted(cell.carry, first, carry)
            carry, remembered = cell_step(params["cell"], carry, inputs)
            return carry, (remembered, carry)

        _, (remembered, carries) = jax.lax.scan(one_step, carry, (first, inputs))
        return over_two_axes(after)(params, seen, remembered, observations), carries

    return RecurrentNetwork(init, cell.carry, step, unroll)


def without_memory(network: Network) -> RecurrentNetwork:
    """Returns a network without a memory as a `RecurrentNetwork` whose carry is `()`."""
    unroll = over_two_axes(network.apply)
    return RecurrentNetwork(
        network.init,
        lambda num_envs: (),
        lambda params, carry, observations: ((), network.apply(params, observations)),
        lambda params, carry, observations, first: (unroll(params, observations), ()),
    )


def restarted(fresh: Callable[[int], Carry], first: Bool[Array, " B"], carry: Carry) -> Carry:
    """Returns the carry `[B, ...]`, reset for each environment whose episode starts."""
    expand = lambda x: first.reshape(-1, *[1] * (x.ndim - 1))
    new = fresh(first.shape[0])
    return jax.tree.map(lambda new, old: jnp.where(expand(old), new, old), new, carry)


def remembers(carry: Callable[[int], Carry]) -> bool:
    """Returns whether the carry holds any array."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: carry(1))))


def _gates(key: PRNGKeyArray, num_features: int, size: int, count: int) -> dict[str, Array]:
    """Returns the weights of `count` gates: for the features, with biases, and for the carry."""
    keys = jax.random.split(key, 2 * count)
    scale = 1 / math.sqrt(num_features)
    of_features = [
        jax.random.normal(k, (num_features, size), jnp.float32) * scale for k in keys[:count]
    ]
    of_carry = [orthogonal(1.0)(k, (size, size)) for k in keys[count:]]
    return {
        "kernel": jnp.concatenate(of_features, axis=1),
        "bias": jnp.zeros(count * size, jnp.float32),
        "recurrent": jnp.concatenate(of_carry, axis=1),
    }


def _affine(params: Params, features: Float[Array, "N F"]) -> Float[Array, "N G"]:
    return features @ params["kernel"] + params["bias"]


CELLS: dict[str, Callable[[int], Cell]] = {"gru": gru, "lstm": lstm}
