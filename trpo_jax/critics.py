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
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from trpo_jax.fisher import gauss_newton_product
from trpo_jax.minibatches import group_samples, shuffled_minibatches, take_minibatch
from trpo_jax.networks import Network, over_two_axes
from trpo_jax.solvers import conjugate_gradient


class CriticState(NamedTuple):
    """Parameters of the critic and the moments of its optimiser."""

    params: PyTree[Array]
    optimizer: optax.OptState


class Critic(NamedTuple):
    """What judges states.

    Attributes:
        init: `key -> state`; the state has a field `params`.
        values: `(params, observations [T, B, ...]) -> values [T, B]`.
        fit: `(key, state, observations [T, B, ...], targets [T, B]) -> (state, loss)`.
    """

    init: Callable[[PRNGKeyArray], Any]
    values: Callable[[PyTree[Array], Num[Array, "T B ..."]], Float[Array, "T B"]]
    fit: Callable[
        [PRNGKeyArray, Any, Num[Array, "T B ..."], Float[Array, "T B"]],
        tuple[Any, Float[Array, ""]],
    ]


def adam_critic(
    network: Network,
    *,
    learning_rate: Float[Array, ""] | float = 1e-3,
    epochs: int = 10,
    minibatches: int = 16,
) -> Critic:
    """Returns the critic whose values a network gives, fitted by Adam; see `fit_critic`."""
    values = over_two_axes(network.apply)

    def fit(key, state, observations, targets):
        return fit_critic(
            key,
            values,
            state,
            observations,
            targets,
            learning_rate=learning_rate,
            epochs=epochs,
            minibatches=minibatches,
        )

    return Critic(lambda key: init_critic(network.init(key)), values, fit)


def trust_region_critic(network: Network, *, max_change: Float[Array, ""] | float = 0.1) -> Critic:
    """Returns the critic whose values a network gives, fitted by `trust_region_fit`."""
    values = over_two_axes(network.apply)

    def fit(key, state, observations, targets):
        return trust_region_fit(values, state, observations, targets, max_change=max_change)

    return Critic(lambda key: init_critic(network.init(key)), values, fit)


def init_critic(params: PyTree[Array]) -> CriticState:
    """Returns the state of a critic that has not been fitted yet."""
    # The moments do not depend on the learning rate, which `fit_critic` is given at each call.
    return CriticState(params, optax.adam(0.0).init(params))


def fit_critic(
    key: PRNGKeyArray,
    apply: Callable[[PyTree[Array], Num[Array, "..."]], Float[Array, "..."]],
    critic: CriticState,
    observations: Num[Array, "T B ..."],
    targets: Float[Array, "T B"],
    *,
    learning_rate: Float[Array, ""] | float,
    epochs: int,
    minibatches: int,
) -> tuple[CriticState, Float[Array, ""]]:
    """Minimises the mean squared error of V(s) - target by Adam (Kingma and Ba 2015).

    Each epoch visits all samples once, in a fresh random order, in `minibatches` equal parts.

    Args:
        key: consumed to shuffle.
        apply: `(params, observations) -> values`.
        critic: state to start from.
        observations: of B environments in T steps.
        targets: what V should be at them.
        learning_rate: Adam's step size.
        epochs: passes over the samples.
        minibatches: parts of each pass; must divide T * B.

    Returns:
        The fitted critic, and the mean squared error over the last pass.
    """
    optimizer = optax.adam(learning_rate)
    groups = group_samples((observations, targets), minibatches)

    def loss(params, minibatch_observations, minibatch_targets):
        values = apply(params, minibatch_observations)
        chex.assert_equal_shape([values, minibatch_targets])
        return jnp.mean((values - minibatch_targets) ** 2)

    def minibatch_step(critic, indices):
        value, gradient = jax.value_and_grad(loss)(critic.params, *take_minibatch(groups, indices))
        updates, moments = optimizer.update(gradient, critic.optimizer)
        return CriticState(optax.apply_updates(critic.params, updates), moments), value

    parts = shuffled_minibatches(key, groups, epochs, minibatches)
    critic, losses = jax.lax.scan(minibatch_step, critic, parts)
    return critic, jnp.mean(losses[-minibatches:])


def trust_region_fit(
    apply: Callable[[PyTree[Array], Num[Array, "..."]], Float[Array, "..."]],
    critic: CriticState,
    observations: Num[Array, "..."],
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
        apply: `(params, observations) -> values`.
        critic: state to start from; its optimiser is left alone.
        observations: observations, `[*batch, ...]`.
        targets: what V should be at them.
        max_change: the bound; 0.5 lets the values change by as much as they are wrong.
        damping: added to the diagonal of H.
        cg_iters: conjugate-gradient iterations.

    Returns:
        The fitted critic, and the mean squared error before the step.
    """
    params = critic.params
    with jax.default_matmul_precision("float32"):
        values, pull_back = jax.vjp(lambda p: apply(p, observations), params)
        chex.assert_equal_shape([values, targets])
        errors = targets - values
        (gradient,) = pull_back(errors / errors.size)
        squared_error = jnp.mean(errors**2)
        product = gauss_newton_product(
            lambda p: apply(p, observations), params, lambda _, u: u / u.size
        )
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
