"""Memory: networks that carry something from one step to the next.

A cell is the recurrent part alone. `recurrent_network` puts it between a network that gives
features and one that gives outputs. To act, `step` goes on by one step. To learn, `unroll` goes
through whole sequences: features and outputs of all steps are computed at once, and a scan computes
what passes through the carry only.

The carry is made anew before the first step of each episode, which is where the step before ended
one (`first`). Gradients and Fisher-vector products pass through the scan as through any function:
they need first derivatives only.
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
        size: width of its output.
        init: `(key, width of the features) -> params`.
        carry: `num_envs -> carry` before a first step; each array has the leading axis `[B]`.
        prepare: `(params, features [N, F]) -> inputs [N, ...]`: all that needs no carry.
        step: `(params, carry, inputs [B, ...]) -> (carry, output [B, size])`.
    """

    size: int
    init: Callable[[PRNGKeyArray, int], Params]
    carry: Callable[[int], Carry]
    prepare: Callable[[Params, Float[Array, "N F"]], PyTree[Array]]
    step: Callable[[Params, Carry, PyTree[Array]], tuple[Carry, Float[Array, "B W"]]]


class RecurrentNetwork(NamedTuple):
    """A network with a carry, which is `()` of one without a memory.

    Attributes:
        init: `key -> params`.
        carry: `num_envs -> carry` before a first step; each array has the leading axis `[B]`.
        step: `(params, carry, observations [B, ...]) -> (carry, outputs [B])`.
        unroll: `(params, carry, observations [T, B, ...], first [T, B]) -> (outputs [T, B], carries
            [T, B, ...])`, where carries are those after each step.
    """

    init: Callable[[PRNGKeyArray], Params]
    carry: Callable[[int], Carry]
    step: Callable[[Params, Carry, Any], tuple[Carry, Any]]
    unroll: Callable[[Params, Carry, Any, Bool[Array, "T B"]], tuple[Any, Carry]]


def gru(size: int) -> Cell:
    """Returns a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078).

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h), n = tanh(W_n x + r (U_n h + b)), and the
    next h, which is the output too, is (1 - z) n + z h. W have biases of their own.
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
    """Returns long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate.

    i, f, o = sigmoid(W x + U h), each with its own weights, and g = tanh(W_g x + U_g h). The next c
    is f c + i g, and the next h, which is the output too, is o tanh(c). The bias of the forget gate
    begins at 1 (Gers et al. 2000).
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
        size: width of its output.

    Example:
        >>> cell = from_linen_cell(nn.SimpleCell(64), 64)
    """
    default = getattr(type(cell), "recurrent_kernel_init", None)
    if default is not None and cell.recurrent_kernel_init is default:
        # Its QR decompositions can wait for each other for ever; see `orthogonal`.
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
    """Returns the network of features, a cell and outputs.

    The head sees the features beside the output of the cell.

    Args:
        features: `(params, observations [N, ...]) -> features [N, F]`.
        num_features: F.
        cell: the recurrent part.
        head: `(params, [N, F + cell.size], observations [N, ...]) -> outputs`; most heads need the
            mask in an observation at the most.
        checkpoint: whether derivatives compute what is inside of the cell a second time, in place
            of keeping it for all steps (`jax.checkpoint`).
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
    """Returns a network without a memory as one whose carry is `()`."""
    unroll = over_two_axes(network.apply)
    return RecurrentNetwork(
        network.init,
        lambda num_envs: (),
        lambda params, carry, observations: ((), network.apply(params, observations)),
        lambda params, carry, observations, first: (unroll(params, observations), ()),
    )


def restarted(fresh: Callable[[int], Carry], first: Bool[Array, " B"], carry: Carry) -> Carry:
    """Returns the carry `[B]`, fresh where an episode starts."""
    expand = lambda x: first.reshape(-1, *[1] * (x.ndim - 1))
    new = fresh(first.shape[0])
    return jax.tree.map(lambda new, old: jnp.where(expand(old), new, old), new, carry)


def remembers(carry: Callable[[int], Carry]) -> bool:
    """Returns whether a carry holds anything."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: carry(1))))


def _gates(key: PRNGKeyArray, num_features: int, size: int, count: int) -> dict[str, Array]:
    """Returns weights of several gates: of features, with biases, and of the carry."""
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
