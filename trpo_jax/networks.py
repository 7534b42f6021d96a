"""Networks, and the flax modules from which the library builds its own networks.

A `Network` is a pair of pure functions. The other files only use a `Network`, so functions written
by hand and modules of other libraries work as well as the modules here.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from trpo_jax.distributions import Categorical, DiagGaussian, Distribution, Product, mask_logits
from trpo_jax.envs.specs import (
    MASK,
    ActionSpec,
    ArraySpec,
    Box,
    Discrete,
    MultiDiscrete,
    ObservationSpec,
    choices_of,
    split_choices,
    split_mask,
)
from trpo_jax.errors import ConfigurationError
from trpo_jax.observing import seen_spec

LARGE_IMAGE = 36  # pixels
if TYPE_CHECKING:  # importing nnx takes 0.5 s
    from flax.nnx import Module as NNXModule
    from flax.nnx import Rngs
else:
    NNXModule = Rngs = Any  # the tests check types at run time, and look up the annotation

# Bounds of log_std. The code of SAC (Haarnoja et al. 2018, arXiv:1801.01290) has -20 and 2. With a
# standard deviation of e^-10, the noise of an action near 1 is still 760 times its rounding error
# in 32 bits.
LOG_STD_BOUNDS = (-10.0, 10.0)
SMALL, LARGE = ((16, 3, 1),), ((16, 8, 4), (32, 4, 2))  # filters, size and stride of each layer


@jax.custom_jvp
def tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the hyperbolic tangent.

    Its derivative is one product with 1 - y^2. The derivative of `jnp.tanh` is a sum and a product
    with two stored arrays, so it reads more memory in every Fisher-vector product.

    Examples:
        >>> print(tanh(jnp.zeros(())), jax.grad(tanh)(jnp.zeros(())))
        0.0 1.0
    """
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals, tangents):
    y = tanh(*primals)
    return y, (1 - y * y) * tangents[0]


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "swish": nn.swish,
}


@cache
def orthogonal(scale: float) -> nn.initializers.Initializer:
    """Returns an initialiser for orthogonal matrices (Saxe et al. 2014, arXiv:1312.6120).

    The columns are orthogonal and have the norm `scale`. If there are fewer rows than columns, the
    rows are orthogonal instead. The distribution over such matrices is uniform. Gram-Schmidt on
    Gaussian columns computes them. The initialiser of JAX calls the QR decomposition of LAPACK
    instead. Two batched QR decompositions at the same time can wait for each other forever on a CPU
    with few cores. This happens if networks are initialised under `jax.vmap`.
    """

    # Each call of a network checks the shapes of its parameters, so flax traces this function.
    @partial(jax.jit, static_argnums=(1, 2), inline=True)
    def init(
        key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "..."]:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        gaussian = jax.random.normal(key, (max(rows, columns), min(rows, columns)), dtype)

        def add_column(index, basis):
            column = gaussian[:, index]
            for _ in range(2):  # the second pass removes the rounding errors of the first
                column -= basis @ (basis.T @ column)
            return basis.at[:, index].set(column / jnp.linalg.norm(column))

        basis = jax.lax.fori_loop(0, gaussian.shape[1], add_column, jnp.zeros_like(gaussian))
        return scale * (basis if rows >= columns else basis.T).reshape(shape)

    return init


class Network(NamedTuple):
    """A function with parameters.

    Attributes:
        init: `key -> params`, any pytree of arrays.
        apply: `(params, observations [N, *shape]) -> output`. The output of a policy is the action
            distributions of N states. The output of a critic is the values `[N]` of the states.

    Examples:
        >>> linear = trpo_jax.Network(
        ...     init=lambda key: jax.random.normal(key, (4, 2)),
        ...     apply=lambda params, observations: trpo_jax.Categorical(observations @ params),
        ... )
        >>> params = linear.init(jax.random.key(0))
        >>> linear.apply(params, jnp.ones((3, 4))).logits.shape
        (3, 2)
    """

    init: Callable[[PRNGKeyArray], PyTree[Array]]
    apply: Callable[..., Any]


def from_linen(module: nn.Module, *inputs: ObservationSpec) -> Network:
    """Returns the network of a flax linen module.

    Args:
        module: the module. It is called with a batch `[N, *shape]` of each input, as networks see
            the input (see `trpo_jax.observing`).
        *inputs: the spec of each input. Most modules have one input, `env.observation`.

    Examples:
        >>> import flax.linen as nn
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> network = trpo_jax.from_linen(nn.Dense(2), env.observation)
        >>> params = network.init(jax.random.key(0))
        >>> network.apply(params, jnp.ones((3, 4))).shape
        (3, 2)
    """

    def init(key):  # makes the example inputs here, so that an unused network takes no memory
        return module.init(key, *(example_seen(spec) for spec in inputs))

    return Network(
        init=lambda key: init(key).get("params", {}),  # a module can have no parameters
        apply=lambda params, *batches: module.apply({"params": params}, *batches),
    )


def example_seen(observation: ObservationSpec) -> Any:
    """Returns an example of a batch of one observation, as networks see it. It holds zeros."""
    seen, mask = seen_spec(observation), split_mask(observation)[1]
    zeros = jax.tree.map(lambda spec: jnp.zeros((1, *spec.shape), spec.dtype), seen)
    if mask is None:
        return zeros
    return zeros | {MASK: jax.tree.map(lambda spec: jnp.ones((1, *spec.shape), bool), mask)}


def from_nnx(make_module: Callable[[Rngs], NNXModule]) -> Network:
    """Returns the network of a flax nnx module.

    Args:
        make_module: `rngs -> module`. The module is called with a batch `[N, *shape]`. Its state
            must be parameters only.

    Examples:
        >>> from flax import nnx
        >>> network = trpo_jax.from_nnx(lambda rngs: nnx.Linear(4, 2, rngs=rngs))
        >>> params = network.init(jax.random.key(0))
        >>> network.apply(params, jnp.ones((3, 4))).shape
        (3, 2)
    """
    from flax import nnx

    structure, _ = nnx.split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))), nnx.Param)
    return Network(
        init=lambda key: nnx.to_pure_dict(nnx.split(make_module(nnx.Rngs(key)), nnx.Param)[1]),
        apply=lambda params, *batches: nnx.merge(structure, nnx.State(params))(*batches),
    )


def over_two_axes(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the `apply` of a network, for inputs with two batch axes `[T, B, ...]`.

    The two axes become one for the call. In a derivative, matrix products with two batch axes would
    take 1.5 times as long on a CPU. The environment varies slowest along the joined axis. So if the
    environments are split over devices, the result is split in the same way.
    """

    def apply_over_two_axes(params: PyTree[Array], *batches: Any) -> Any:
        num_steps, num_envs = jax.tree.leaves(batches)[0].shape[:2]
        flat = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), batches)
        return jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(num_envs, num_steps, *x.shape[1:]), 0, 1),
            apply(params, *flat),
        )

    return apply_over_two_axes


class Torso(nn.Module):
    """Maps observations to features. Convolutions see images, and fully connected layers follow.

    Images are `[*batch, height, width, channels]`. A small image goes through the convolution of
    the MinAtar paper: 16 filters of 3x3 with stride 1 (Young and Tian 2019, arXiv:1903.03176). An
    image of at least `LARGE_IMAGE` pixels a side goes through the two convolutions of the first
    DQN: 16 filters of 8x8 with stride 4, then 32 filters of 4x4 with stride 2 (Mnih et al. 2013,
    arXiv:1312.5602). If an observation is a tree, its arrays are joined before the first fully
    connected layer, in the order of their names. The part `action_mask` is left out.

    Attributes:
        shapes: the shape of each array of an observation. An array with three axes is an image if
            its sides have 3 pixels or more.
        hidden_sizes: the width of each fully connected layer.
        activation: name of the activation function, a key of `ACTIVATIONS`.
    """

    shapes: tuple[tuple[int, ...], ...]
    hidden_sizes: Sequence[int]
    activation: str

    @nn.compact
    def __call__(self, observations: PyTree[Shaped[Array, "..."]]) -> Float[Array, "..."]:
        activation = ACTIVATIONS[self.activation]
        kernel_init = orthogonal(math.sqrt(2.0))
        flat = []
        leaves = jax.tree.leaves(split_mask(observations)[0])
        for x, shape in zip(leaves, self.shapes, strict=True):
            x = x.astype(jnp.float32)
            batch_shape = x.shape[: x.ndim - len(shape)]
            for features, size, stride in convolutions(shape):
                patches = _patches(x, size, stride)
                x = activation(nn.Dense(features, kernel_init=kernel_init)(patches))
            flat.append(x.reshape(*batch_shape, -1))
        x = jnp.concatenate(flat, axis=-1) if len(flat) > 1 else flat[0]
        for size in self.hidden_sizes:
            x = activation(nn.Dense(size, kernel_init=kernel_init)(x))
        return x


def convolutions(observation_shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Returns the filters, the size and the stride of each convolution of a `Torso`."""
    smallest = min(observation_shape[:2]) if len(observation_shape) == 3 else 0
    return LARGE if smallest >= LARGE_IMAGE else SMALL if smallest >= 3 else ()


def _patches(
    images: Float[Array, "... H W C"], size: int, stride: int
) -> Float[Array, "... h w p"]:
    """Returns the flattened size x size patches of images, so that a matrix product convolves them.

    On a CPU, the convolution of JAX is 10 to 100 times slower in derivatives, and also if
    `jax.vmap` over seeds batches its kernels.
    """
    height, width = images.shape[-3] - size + 1, images.shape[-2] - size + 1
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate(
        [images[..., i : i + height : stride, j : j + width : stride, :] for i, j in shifts],
        axis=-1,
    )


class PolicyHead(nn.Module):
    """Maps features to the distribution of an action.

    If the action has several parts, the distribution is a `Product`. The log_std of a `Box` is
    clipped to `LOG_STD_BOUNDS`. The distribution has the clipped value, so its KL divergence and
    its Fisher matrix are exact. No step goes beyond a bound. At a bound, the gradient of log_std is
    0.

    Attributes:
        parts: the specs in an action.
        structure: the structure of the tree whose leaves are `parts`.
        log_std_init: initial value of log_std, the logarithm of the standard deviation.
        state_dependent_std: whether log_std is a function of the features. If not, it is one vector
            of parameters.
    """

    parts: tuple[Discrete | MultiDiscrete | Box, ...]
    structure: Any
    log_std_init: Float[Array, ""] | float
    state_dependent_std: bool

    @nn.compact
    def __call__(
        self, features: Float[Array, "..."], mask: PyTree[Bool[Array, "..."]] = None
    ) -> Distribution:
        choices = choices_of(self.parts)
        legal = [None] * len(choices)
        if mask is not None:
            legal = split_choices(mask, features.shape[:-1], choices)

        def choose(num_actions: int) -> Categorical:
            logits, allowed = _policy_layer(num_actions)(features), legal.pop(0)
            return Categorical(logits if allowed is None else mask_logits(logits, allowed))

        def normal(size: int, name: str) -> DiagGaussian:
            mean = _policy_layer(size)(features)
            initial = nn.initializers.constant(self.log_std_init)
            if self.state_dependent_std:
                log_std = _policy_layer(size, bias_init=initial)(features)
            else:
                log_std = self.param(name, initial, (size,), jnp.float32)
            clipped = jnp.clip(log_std, *LOG_STD_BOUNDS)
            return DiagGaussian(mean, jnp.broadcast_to(clipped, mean.shape))

        found: list[Distribution] = []
        for index, part in enumerate(self.parts):
            match part:
                case Discrete(num_actions):
                    found.append(choose(num_actions))
                case MultiDiscrete(num_actions):
                    found.append(Product(tuple(choose(n) for n in num_actions)))
                case Box():
                    suffix = f"_{index}" if len(self.parts) > 1 else ""
                    found.append(normal(part.size, f"log_std{suffix}"))
        if jax.tree_util.treedef_is_leaf(self.structure):
            return found[0]
        return Product(self.structure.unflatten(found))


class PolicyModule(nn.Module):
    """Maps observations to the distribution of an action.

    Attributes:
        layers: the module from observations to features, and the module from features to the
            distribution.
    """

    layers: tuple[Torso, PolicyHead]

    def __call__(self, observations: PyTree[Shaped[Array, "..."]]) -> Distribution:
        """Returns the distributions of a batch of observations."""
        torso, head = self.layers
        return head(torso(observations), split_mask(observations)[1])


class ValueHead(nn.Module):
    """Maps features `[*batch, F]` to values `[*batch]`. It ignores the mask of legal actions."""

    @nn.compact
    def __call__(self, features: Float[Array, "..."], mask: Any = None) -> Float[Array, "..."]:
        return nn.Dense(1, kernel_init=orthogonal(1.0))(features)[..., 0]


class ActionValue(nn.Module):
    """Maps observations and actions `[*batch, D]` to values `[*batch]`.

    The actions join the features before the last hidden layer (Lillicrap et al. 2016,
    arXiv:1509.02971, section 7).
    """

    shapes: tuple[tuple[int, ...], ...]
    hidden_sizes: Sequence[int]
    activation: str

    @nn.compact
    def __call__(
        self, observations: PyTree[Shaped[Array, "..."]], actions: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        seen = Torso(self.shapes, self.hidden_sizes[:-1], self.activation)(observations)
        joined = jnp.concatenate([seen, actions], axis=-1)
        last = Torso((joined.shape[-1:],), self.hidden_sizes[-1:], self.activation)
        return ValueHead()(last(joined))


def make_policy(
    observation: ObservationSpec,
    action: ActionSpec,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "tanh",
    log_std_init: Float[Array, ""] | float = 0.0,
    state_dependent_std: bool = False,
) -> Network:
    """Returns the network of a policy.

    Its initialisation is orthogonal, and the output layer is scaled by 0.01. With such a small
    output layer, the initial policy is nearly the same in every state: uniform, or with a mean of
    0. In Andrychowicz et al. 2021 (arXiv:2006.05990, section 3.2), this choice has the largest
    effect of all choices of the initialisation.

    Args:
        observation: spec of the observations.
        action: spec of the actions. It decides the kind of the distribution.
        hidden_sizes: the width of each hidden layer.
        activation: a key of `ACTIVATIONS`.
        log_std_init: initial logarithm of the standard deviation, for `Box` actions.
        state_dependent_std: whether the standard deviation depends on the state, for `Box` actions.

    Returns:
        A `Network` whose output is a `Distribution`. Only its head reads the part `action_mask` of
        the observations.
    """
    torso = make_torso(observation, hidden_sizes, activation)
    head = make_policy_head(action, log_std_init, state_dependent_std)
    return from_linen(PolicyModule((torso, head)), observation)


def make_torso(observation: ObservationSpec, hidden_sizes: Sequence[int], activation: str) -> Torso:
    """Returns the module that maps observations, as networks see them, to features."""
    shapes = tuple(tuple(spec.shape) for spec in jax.tree.leaves(seen_spec(observation)))
    return Torso(shapes, tuple(hidden_sizes), activation)


def make_policy_head(
    action: ActionSpec, log_std_init: Float[Array, ""] | float, state_dependent_std: bool
) -> PolicyHead:
    """Returns the module that maps features to the distribution of an action.

    Raises:
        ConfigurationError: if there is no distribution for a part of the action.
    """
    parts, structure = jax.tree.flatten(action)
    for part in parts:
        if not isinstance(part, Discrete | MultiDiscrete | Box):
            raise ConfigurationError(
                f"No policy chooses actions of type {type(part).__name__}. They must be Discrete, "
                "MultiDiscrete, Box, or a tree of these."
            )
    return PolicyHead(tuple(parts), structure, log_std_init, state_dependent_std)


def make_critic(
    observation: ObservationSpec,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "tanh",
) -> Network:
    """Returns the network of a state-value function V(s). See `make_policy`."""
    torso = make_torso(observation, hidden_sizes, activation)
    return from_linen(nn.Sequential([torso, ValueHead()]), observation)


def make_action_critic(
    observation: ObservationSpec,
    action: Box,
    *,
    hidden_sizes: Sequence[int] = (64, 64),
    activation: str = "tanh",
) -> Network:
    """Returns the network of an action-value function Q(s, a). See `make_policy`.

    Its `apply` is `(params, observations [N, *shape], actions [N, D]) -> [N]`. The actions are
    those of the policy, before the environment scales and clips them.
    """
    shapes = make_torso(observation, hidden_sizes, activation).shapes
    module = ActionValue(shapes, tuple(hidden_sizes), activation)
    return from_linen(module, observation, ArraySpec((action.size,), np.dtype(np.float32)))


def _policy_layer(size: int, **kwargs) -> nn.Dense:
    return nn.Dense(size, kernel_init=orthogonal(0.01), **kwargs)
