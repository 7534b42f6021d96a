"""Critics: values of states, and fitting them to targets by Adam, in a trust region, or by replay.

`adam_critic` and `trust_region_critic` make a critic of a network; the functions that they are made
of stand for themselves too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from trpo_jax.fisher import gauss_newton_product
from trpo_jax.minibatches import Minibatches
from trpo_jax.networks import Network
from trpo_jax.normalization import (
    RunningStatistics,
    init_statistics,
    standard_deviation,
    update_statistics,
)
from trpo_jax.recurrent import RecurrentNetwork, remembers, without_memory
from trpo_jax.solvers import conjugate_gradient


class CriticState(NamedTuple):
    """Parameters of the critic and the moments of its optimiser."""

    params: PyTree[Array]
    optimizer: optax.OptState


class WithCosts(NamedTuple):
    """Something of the rewards, and the same of K costs.

    Attributes:
        reward: states, values or targets of the critic of rewards.
        costs: those of the critics of costs, with an axis `[K]`.
    """

    reward: Any
    costs: Any

    @property
    def params(self) -> "WithCosts":
        """The parameters in states of critics."""
        return WithCosts(self.reward.params, self.costs.params)


class Sequences(NamedTuple):
    """B sequences of T steps, as a critic sees them.

    Attributes:
        carry: the memory of the critic before the first step, `[B, ...]`; `()` without one.
        observations: as networks see them, a tree of arrays `[T, B, ...]`.
        first: whether an episode starts, `[T, B]`.
    """

    carry: Any
    observations: Any
    first: Bool[Array, "T B"]


class Critic(NamedTuple):
    """What judges states.

    Attributes:
        init: `key -> state`; the state has a field `params`.
        values: `(params, sequences) -> (values [T, B], carries [T, B, ...])`, where carries are
            the memory after each step.
        fit: `(key, state, sequences, targets [T, B]) -> (state, loss)`.
        carry: `num_envs -> carry`, the memory at the start of episodes, `[B, ...]`.
    """

    init: Callable[[PRNGKeyArray], Any]
    values: Callable[[PyTree[Array], Sequences], tuple[Float[Array, "T B"], Any]]
    fit: Callable[[PRNGKeyArray, Any, Sequences, Float[Array, "T B"]], tuple[Any, Float[Array, ""]]]
    carry: Callable[[int], Any] = lambda num_envs: ()


def adam_critic(
    network: Network | RecurrentNetwork,
    *,
    learning_rate: Float[Array, ""] | float = 1e-3,
    epochs: int = 10,
    minibatches: int = 16,
) -> Critic:
    """Returns the critic whose values a network gives, fitted by Adam; see `fit_critic`.

    Example:
        >>> critic = adam_critic(Network(init, lambda params, x: x @ params["w"]))
    """
    network = with_carry(network)

    def fit(key, state, sequences, targets):
        return fit_critic(
            key,
            network.unroll,
            state,
            sequences,
            targets,
            learning_rate=learning_rate,
            epochs=epochs,
            minibatches=minibatches,
            whole_sequences=remembers(network.carry),
        )

    return Critic(
        lambda key: init_critic(network.init(key)), _values_of(network), fit, network.carry
    )


def trust_region_critic(
    network: Network | RecurrentNetwork, *, max_change: Float[Array, ""] | float = 0.1
) -> Critic:
    """Returns the critic whose values a network gives, fitted by `trust_region_fit`."""
    network = with_carry(network)
    values = _values_of(network)

    def fit(key, state, sequences, targets):
        return trust_region_fit(
            lambda params: values(params, sequences)[0], state, targets, max_change=max_change
        )

    return Critic(lambda key: init_critic(network.init(key)), values, fit, network.carry)


def with_carry(network: Network | RecurrentNetwork) -> RecurrentNetwork:
    """Returns a network as one with a carry."""
    return without_memory(network) if isinstance(network, Network) else network


def _values_of(network: RecurrentNetwork) -> Callable[[PyTree[Array], Sequences], Any]:
    return lambda params, sequences: network.unroll(params, *sequences)


class NormalizedState(NamedTuple):
    """State of a critic that is fitted to standardised targets.

    Attributes:
        own: state of the critic.
        statistics: of all targets so far.
    """

    own: Any
    statistics: RunningStatistics

    @property
    def params(self) -> tuple[PyTree[Array], RunningStatistics]:
        """What values depend on: parameters of the critic, and the statistics."""
        return self.own.params, self.statistics


def normalized(critic: Critic) -> Critic:
    """Returns a critic that is fitted to targets of mean 0 and deviation 1.

    V(s) = mean + deviation * v(s), with v the values of the critic that is given, and running
    statistics of the targets (value normalisation: Yu et al. 2022, arXiv:2103.01955, section 3;
    after van Hasselt et al. 2016, arXiv:1602.07714, without its correction of the last layer).

    Example:
        >>> critic = normalized(adam_critic(network))
    """

    def values(params, sequences):
        own, statistics = params
        found, carries = critic.values(own, sequences)
        return _mean(statistics) + standard_deviation(statistics) * found, carries

    def fit(key, state, sequences, targets):
        statistics = update_statistics(state.statistics, targets)
        deviation = standard_deviation(statistics)
        own, loss = critic.fit(key, state.own, sequences, (targets - _mean(statistics)) / deviation)
        return NormalizedState(own, statistics), loss * deviation**2

    init = lambda key: NormalizedState(critic.init(key), init_statistics(()))
    return Critic(init, values, fit, critic.carry)


def _mean(statistics: RunningStatistics) -> Float[Array, "*shape"]:
    return statistics.mean + statistics.mean_rest


def with_costs(critic: Critic, num_costs: int) -> Critic:
    """Returns a critic beside K = `num_costs` others of its kind, which judge costs.

    Its states, values, targets and losses are `WithCosts`: values and targets of rewards are
    `[T, B]`, those of costs `[T, B, K]`. The critic of rewards is given the keys that it would have
    alone.
    """
    others = several(critic, num_costs)

    def init(key):
        return WithCosts(critic.init(key), others.init(jax.random.fold_in(key, 1)))

    def values(params, sequences):
        pairs = zip((critic, others), params, _apart(sequences), strict=True)
        found, carries = zip(*(own.values(*args) for own, *args in pairs), strict=True)
        return WithCosts(*found), WithCosts(*carries)

    def fit(key, state, sequences, targets):
        keys = key, jax.random.fold_in(key, 1)
        pairs = zip((critic, others), keys, state, _apart(sequences), targets, strict=True)
        states, losses = zip(*(own.fit(*args) for own, *args in pairs), strict=True)
        return WithCosts(*states), WithCosts(*losses)

    carry = lambda num_envs: WithCosts(critic.carry(num_envs), others.carry(num_envs))
    return Critic(init, values, fit, carry)


def _apart(sequences: Sequences) -> tuple[Sequences, Sequences]:
    """Returns sequences with the memory of the critic of rewards, and with that of the others."""
    reward, costs = sequences.carry
    return sequences._replace(carry=reward), sequences._replace(carry=costs)


def several(critic: Critic, count: int) -> Critic:
    """Returns K = `count` critics of one kind as one critic of K values.

    Its parameters have the leading axis `[K]`, its values and targets are `[T, B, K]`, its memory
    is `[B, K, ...]`, and its loss is the mean of theirs.
    """
    axes = Sequences(carry=1, observations=None, first=None)

    def fit(key, state, sequences, targets):
        fit_all = jax.vmap(critic.fit, (0, 0, axes, 2))
        state, losses = fit_all(jax.random.split(key, count), state, sequences, targets)
        return state, jnp.mean(losses)

    def carry(num_envs):
        return jax.tree.map(lambda x: jnp.stack([x] * count, axis=1), critic.carry(num_envs))

    return Critic(
        lambda key: jax.vmap(critic.init)(jax.random.split(key, count)),
        jax.vmap(critic.values, (0, axes), (2, 2)),
        fit,
        carry,
    )


def following_values(
    critic: Critic,
    params: PyTree[Array],
    carries: Any,
    observations: PyTree[Shaped[Array, "T B ..."]],
) -> Any:
    """Returns V(s'_t) of what followed each step, seen with the memory after that step.

    Args:
        critic: the critic.
        params: of the critic.
        carries: the memory after each step, `[T, B, ...]`.
        observations: what followed each step.
    """
    leading = jax.tree.leaves(observations)[0].shape[:2]
    if not jax.tree.leaves(carries):
        return critic.values(params, Sequences(carries, observations, jnp.zeros(leading, bool)))[0]
    num_steps, num_envs = leading
    # Each step is the only one of a sequence of its own; the environment varies slowest.
    flat = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
    sequences = Sequences(
        jax.tree.map(flat, carries),
        jax.tree.map(lambda x: flat(x)[None], observations),
        jnp.zeros((1, num_steps * num_envs), bool),
    )
    values, _ = critic.values(params, sequences)
    back = lambda x: jnp.swapaxes(x.reshape(num_envs, num_steps, *x.shape[2:]), 0, 1)
    return jax.tree.map(back, values)


def init_critic(params: PyTree[Array]) -> CriticState:
    """Returns the state of a critic that has not been fitted yet."""
    # The moments do not depend on the learning rate, which `fit_critic` is given at each call.
    return CriticState(params, optax.adam(0.0).init(params))


def fit_critic(
    key: PRNGKeyArray,
    unroll: Callable[..., tuple[Float[Array, "T B"], Any]],
    critic: CriticState,
    sequences: Sequences,
    targets: Float[Array, "T B"],
    *,
    learning_rate: Float[Array, ""] | float,
    epochs: int,
    minibatches: int,
    whole_sequences: bool = False,
) -> tuple[CriticState, Float[Array, ""]]:
    """Minimises the mean squared error of V(s) - target by Adam (Kingma and Ba 2015).

    Each epoch visits all samples once, in a fresh random order, in `minibatches` equal parts.

    Args:
        key: consumed to shuffle.
        unroll: `(params, carry, observations, first) -> (values, carries)`.
        critic: state to start from.
        sequences: of B environments in T steps.
        targets: what V should be at them.
        learning_rate: Adam's step size.
        epochs: passes over the samples.
        minibatches: parts of each pass; must divide T * B.
        whole_sequences: whether parts are of whole sequences; the largest number of parts that
            divides both `minibatches` and B then takes the place of `minibatches`.

    Returns:
        The fitted critic, and the mean squared error over the last pass.
    """
    optimizer = optax.adam(learning_rate)
    carry = jax.tree.map(lambda x: x[None], sequences.carry)
    batch = (carry, sequences.observations, sequences.first, targets)
    parts = Minibatches(batch, minibatches, whole_sequences)

    def loss(params, minibatch):
        carry, observations, first, minibatch_targets = minibatch
        carry = jax.tree.map(lambda x: x[0], carry)
        values, _ = unroll(params, carry, observations, first)
        chex.assert_equal_shape([values, minibatch_targets])
        return jnp.mean((values - minibatch_targets) ** 2)

    def minibatch_step(critic, indices):
        value, gradient = jax.value_and_grad(loss)(critic.params, parts.take(indices))
        updates, moments = optimizer.update(gradient, critic.optimizer)
        return CriticState(optax.apply_updates(critic.params, updates), moments), value

    critic, losses = jax.lax.scan(minibatch_step, critic, parts.shuffled(key, epochs))
    return critic, jnp.mean(losses[-parts.count :])


def trust_region_fit(
    values_of: Callable[[PyTree[Array]], Float[Array, "*batch"]],
    critic: CriticState,
    targets: Float[Array, "*batch"],
    *,
    max_change: Float[Array, ""] | float,
    damping: float = 1e-3,
    cg_iters: int = 10,
) -> tuple[CriticState, Float[Array, ""]]:
    """Takes one Gauss-Newton step that changes the values by a bounded amount.

    minimise mean (V(s) - target)^2 subject to mean (V(s) - V_old(s))^2 / (2 sigma^2) <= max_change,
    with sigma^2 the mean squared error of V_old (Schulman et al. 2016, arXiv:1506.02438, equation
    29). The Gauss-Newton matrix is H = mean j j^T with j the gradient of V(s), solved by conjugate
    gradient, and is the metric of the bound too. A step that solves the quadratic problem inside of
    the region is taken as it is; the paper would lengthen it up to the bound.

    Args:
        values_of: `params -> values`.
        critic: state to start from; its optimiser is left alone.
        targets: what the values should be.
        max_change: the bound; 0.5 lets the values change by as much as they are wrong.
        damping: added to the diagonal of H.
        cg_iters: conjugate-gradient iterations.

    Returns:
        The fitted critic, and the mean squared error before the step.
    """
    params = critic.params
    with jax.default_matmul_precision("float32"):
        values, pull_back = jax.vjp(values_of, params)
        chex.assert_equal_shape([values, targets])
        errors = targets - values
        (gradient,) = pull_back(errors / errors.size)
        squared_error = jnp.mean(errors**2)
        product = gauss_newton_product(values_of, params, lambda _, u: u / u.size)
        damped = lambda v: optax.tree.add_scale(product(v), damping, v)
        solution = conjugate_gradient(damped, gradient, cg_iters)
    # After conjugate gradient x.(H + damping I)x = gradient.x, at least the mean squared change.
    change = optax.tree.vdot(gradient, solution.x) / 2
    bound = max_change * squared_error
    positive = change > bound
    scale = jnp.where(positive, jnp.sqrt(bound / jnp.where(positive, change, 1.0)), 1.0)
    return critic._replace(params=optax.tree.add_scale(params, scale, solution.x)), squared_error


def fit_with_target(
    key: PRNGKeyArray,
    sample: Callable[[PRNGKeyArray], Any],
    loss: Callable[[PyTree[Array], PyTree[Array], Any], Float[Array, ""]],
    critic: CriticState,
    target_params: PyTree[Array],
    *,
    learning_rate: Float[Array, ""] | float,
    tau: Float[Array, ""] | float,
    steps: int,
) -> tuple[CriticState, PyTree[Array], Float[Array, ""]]:
    """Takes steps of Adam on sampled minibatches; after each, the target follows by a share tau.

    target' = target + tau (params - target) (Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1).

    Args:
        key: consumed to sample.
        sample: `key -> minibatch`.
        loss: `(params, target params, minibatch) -> scalar`, differentiated in the first.
        critic: state to start from.
        target_params: target to start from.
        learning_rate: Adam's step size.
        tau: share of the parameters that moves into the target, in [0, 1].
        steps: number of steps.

    Returns:
        The fitted critic, its target, and the mean of the losses.
    """
    optimizer = optax.adam(learning_rate)

    def step(carry, step_key):
        critic, target_params = carry
        value, gradient = jax.value_and_grad(loss)(critic.params, target_params, sample(step_key))
        updates, moments = optimizer.update(gradient, critic.optimizer)
        params = optax.apply_updates(critic.params, updates)
        target_params = optax.incremental_update(params, target_params, tau)
        return (CriticState(params, moments), target_params), value

    (critic, target_params), losses = jax.lax.scan(
        step, (critic, target_params), jax.random.split(key, steps)
    )
    return critic, target_params, jnp.mean(losses)


def explained_variance(
    values: Float[Array, " *B"], targets: Float[Array, " *B"]
) -> Float[Array, ""]:
    """Returns 1 - Var(target - value) / Var(target): 1 is perfect, 0 no better than a constant.

    A batch of constant targets has nothing to explain and counts as 0.
    """
    chex.assert_equal_shape([values, targets])
    variance = jnp.var(targets)
    explained = 1 - jnp.var(targets - values) / jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, explained, 0.0)
