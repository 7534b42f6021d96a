"""Critics estimate the values of states. They are fitted to targets.

`adam_critic` and `trust_region_critic` make a critic from a network. The functions that fit it,
`fit_critic` and `trust_region_fit`, can also be called directly. `fit_with_target` fits a critic
to a replay buffer.
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
    """The parameters of a critic and the moments of its optimiser."""

    params: PyTree[Array]
    optimizer: optax.OptState


class WithCosts(NamedTuple):
    """The same kind of data for the critic of the reward and for the critics of K costs.

    Attributes:
        reward: state, values, targets or losses of the critic of the reward.
        costs: state, values, targets or losses of the critics of the costs, with an axis `[K]`.
    """

    reward: Any
    costs: Any

    @property
    def params(self) -> "WithCosts":
        """The parameters, if the pair holds the states of critics."""
        return WithCosts(self.reward.params, self.costs.params)


class Sequences(NamedTuple):
    """B sequences of T steps, as a critic sees them.

    Attributes:
        carry: the memory of the critic before the first step, `[B, ...]`. `()` if the critic has
            no memory.
        observations: a tree of arrays `[T, B, ...]`, as networks see them.
        first: whether an episode starts at a step, `[T, B]`.
    """

    carry: Any
    observations: Any
    first: Bool[Array, "T B"]


class Critic(NamedTuple):
    """The functions of a critic. A critic estimates the values of states.

    Attributes:
        init: `key -> state`. The state has a field `params`.
        values: `(params, sequences) -> (values [T, B], carries [T, B, ...])`. The carries are the
            memory after each step.
        fit: `(key, state, sequences, targets [T, B]) -> (state, loss)`.
        carry: `num_envs -> carry`. Returns the memory at the start of episodes, `[B, ...]`.

    Examples:
        >>> env = trpo_jax.make_env("CartPole-v1")
        >>> critic = trpo_jax.make_agent(env, trpo_jax.trpo.Config()).critic
        >>> state = critic.init(jax.random.key(0))
        >>> sequences = Sequences(critic.carry(3), jnp.ones((5, 3, 4)), jnp.zeros((5, 3), bool))
        >>> values, carries = critic.values(state.params, sequences)
        >>> values.shape
        (5, 3)
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
    """Returns a critic that Adam fits to its targets. See `fit_critic`.

    Args:
        network: its output is the value of each state.
        learning_rate: step size of Adam.
        epochs: number of passes over the samples.
        minibatches: number of minibatches in each pass.

    Examples:
        >>> linear = trpo_jax.Network(lambda key: jnp.zeros(4), lambda params, x: x @ params)
        >>> critic = trpo_jax.adam_critic(linear, learning_rate=0.1, epochs=100, minibatches=1)
        >>> sequences = Sequences((), jnp.eye(4)[None], jnp.zeros((1, 4), bool))
        >>> targets = jnp.array([[1.0, 2.0, 3.0, 4.0]])
        >>> state = critic.init(jax.random.key(0))
        >>> state, loss = critic.fit(jax.random.key(1), state, sequences, targets)
        >>> state.params.round()
        Array([1., 2., 3., 4.], dtype=float32)
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
    """Returns a critic that is fitted to its targets in a trust region. See `trust_region_fit`.

    Args:
        network: its output is the value of each state.
        max_change: bound on the change of the values in one fit.

    Examples:
        >>> linear = trpo_jax.Network(lambda key: jnp.zeros(4), lambda params, x: x @ params)
        >>> critic = trpo_jax.trust_region_critic(linear, max_change=0.5)
        >>> sequences = Sequences((), jnp.eye(4)[None], jnp.zeros((1, 4), bool))
        >>> targets = jnp.array([[1.0, 2.0, 3.0, 4.0]])
        >>> state = critic.init(jax.random.key(0))
        >>> state, loss = critic.fit(jax.random.key(1), state, sequences, targets)
        >>> state.params.round()
        Array([1., 2., 3., 4.], dtype=float32)
    """
    network = with_carry(network)
    values = _values_of(network)

    def fit(key, state, sequences, targets):
        return trust_region_fit(
            lambda params: values(params, sequences)[0], state, targets, max_change=max_change
        )

    return Critic(lambda key: init_critic(network.init(key)), values, fit, network.carry)


def with_carry(network: Network | RecurrentNetwork) -> RecurrentNetwork:
    """Returns a network as a `RecurrentNetwork`. If it has no memory, its carry is `()`."""
    return without_memory(network) if isinstance(network, Network) else network


def _values_of(network: RecurrentNetwork) -> Callable[[PyTree[Array], Sequences], Any]:
    return lambda params, sequences: network.unroll(params, *sequences)


class NormalizedState(NamedTuple):
    """The state of a critic that is fitted to standardised targets.

    Attributes:
        own: the state of the critic.
        statistics: running statistics of all targets so far.
    """

    own: Any
    statistics: RunningStatistics

    @property
    def params(self) -> tuple[PyTree[Array], RunningStatistics]:
        """The parameters of the critic and the statistics. The values depend on both."""
        return self.own.params, self.statistics


def normalized(critic: Critic) -> Critic:
    """Returns a critic that is fitted to targets of mean 0 and standard deviation 1.

    V(s) = mean + deviation * v(s). Here v is the value of the given critic, and the mean and the
    standard deviation are running statistics of the targets. This is the value normalisation of
    Yu et al. 2022 (arXiv:2103.01955, section 3). It follows van Hasselt et al. 2016
    (arXiv:1602.07714), but does not correct the last layer.

    Examples:
        >>> linear = trpo_jax.Network(lambda key: jnp.zeros(4), lambda params, x: x @ params)
        >>> critic = trpo_jax.normalized(trpo_jax.trust_region_critic(linear, max_change=0.5))
        >>> sequences = Sequences((), jnp.eye(4)[None], jnp.zeros((1, 4), bool))
        >>> targets = jnp.array([[100.0, 200.0, 300.0, 400.0]])
        >>> state = critic.init(jax.random.key(0))
        >>> state, loss = critic.fit(jax.random.key(1), state, sequences, targets)
        >>> (critic.values(state.params, sequences)[0] / 100).round()
        Array([[1., 2., 3., 4.]], dtype=float32)
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
    """Returns a critic of the reward together with K = `num_costs` critics of costs.

    All of them are of the same kind. The states, values, targets and losses are `WithCosts`. The
    values and targets of the reward are `[T, B]`, and the values and targets of the costs are
    `[T, B, K]`. The critic of the reward gets the same keys as without costs.
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
    """Returns the sequences twice: for the critic of the reward, and for the critics of costs."""
    reward, costs = sequences.carry
    return sequences._replace(carry=reward), sequences._replace(carry=costs)


def several(critic: Critic, count: int) -> Critic:
    """Returns K = `count` critics of one kind as one critic of K values.

    The parameters have the leading axis `[K]`. The values and targets are `[T, B, K]`, and the
    memory is `[B, K, ...]`. The loss is the mean of the K losses.
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
    """Returns V(s'_t), the value of the observation after each step.

    The critic computes it with the memory that it has after the step.

    Args:
        critic: the critic.
        params: parameters of the critic.
        carries: the memory after each step, `[T, B, ...]`.
        observations: the observation after each step, `[T, B, ...]`.
    """
    leading = jax.tree.leaves(observations)[0].shape[:2]
    if not jax.tree.leaves(carries):
        return critic.values(params, Sequences(carries, observations, jnp.zeros(leading, bool)))[0]
    num_steps, num_envs = leading
    # Each step becomes a sequence of one step. The environment varies slowest.
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
    """Returns the state of a critic before its first fit."""
    # The moments do not depend on the learning rate. `fit_critic` gets it at each call.
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
    """Fits a critic with Adam (Kingma and Ba 2015). Minimises the mean of (V(s) - target)^2.

    Each epoch visits every sample once, in a new random order, in `minibatches` equal parts.

    Args:
        key: consumed to shuffle.
        unroll: `(params, carry, observations, first) -> (values, carries)`.
        critic: the state to start from.
        sequences: B sequences of T steps.
        targets: the target of the value at each step, `[T, B]`.
        learning_rate: step size of Adam.
        epochs: number of passes over the samples.
        minibatches: number of minibatches in each pass. Must divide T * B.
        whole_sequences: whether each minibatch holds whole sequences. The number of minibatches is
            then the greatest common divisor of `minibatches` and B.

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

    The step minimises mean (V(s) - target)^2 subject to
    mean (V(s) - V_old(s))^2 / (2 sigma^2) <= max_change. Here sigma^2 is the mean squared error of
    V_old (Schulman et al. 2016, arXiv:1506.02438, equation 29). The Gauss-Newton matrix is
    H = mean j j^T, with j the gradient of V(s). Conjugate gradient solves for the step, and H is
    also the metric of the bound. If the solution of the quadratic problem lies inside the trust
    region, it is the step. The paper would lengthen it up to the bound.

    Args:
        values_of: `params -> values`.
        critic: the state to start from. The state of its optimiser stays the same.
        targets: the target of each value.
        max_change: the bound. At 0.5, the values can change by as much as their errors.
        damping: added to the diagonal of H.
        cg_iters: number of conjugate-gradient iterations.

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
    # After conjugate gradient x.(H + damping I)x = gradient.x. It bounds the mean squared change.
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
    """Fits a critic with Adam on sampled minibatches. A target network follows it slowly.

    After each step, target' = target + tau (params - target) (Lillicrap et al. 2016,
    arXiv:1509.02971, algorithm 1).

    Args:
        key: consumed to sample.
        sample: `key -> minibatch`.
        loss: `(params, target params, minibatch) -> scalar`. Only `params` is differentiated.
        critic: the state to start from.
        target_params: the parameters of the target network to start from.
        learning_rate: step size of Adam.
        tau: how far the target moves towards the parameters in each step, in [0, 1].
        steps: number of steps.

    Returns:
        The fitted critic, the parameters of the target network, and the mean of the losses.
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
    """Returns 1 - Var(target - value) / Var(target).

    The result is 1 if the values are perfect, and 0 if they are no better than a constant. It is 0
    if all targets are the same.
    """
    chex.assert_equal_shape([values, targets])
    variance = jnp.var(targets)
    explained = 1 - jnp.var(targets - values) / jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, explained, 0.0)
