"""The trust-region step: gradient, metric, solver, length and acceptance.

maximise L(params) subject to mean KL(old || new) <= max_kl (Schulman et al. 2015,
arXiv:1502.05477, equation 14), solved as in its appendix C: a natural-gradient direction by
conjugate gradient, scaled to about the edge of the region by a quadratic model of the KL
divergence, then shortened until the surrogate itself improves and the KL divergence itself is small
enough.

The paper's guarantee is for a bound on the KL divergence at every state (theorem 1), for which
equation 12 puts the mean. States that are rare may then be moved by a hundred times as much; a
`kl_peak` bounds them too, at the states of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from trpo_jax.distributions import Distribution
from trpo_jax.line_search import backtracking
from trpo_jax.solvers import SolverResult

LEAST_SHARE = 0.01  # of the damped curvature: an undamped step is at most ten times as long

Params = PyTree[Array]
Solve = Callable[[Params], SolverResult]
Surrogate = Callable[[Distribution, Distribution], Float[Array, ""]]


class NaturalStep(NamedTuple):
    """A step to about the edge of the trust region, before any acceptance test.

    Attributes:
        step: a tree like the parameters.
        gradient_dot_direction: g.x for the solution x of (F + damping I) x = g, scalar.
        predicted_gain: first-order gain of the surrogate along the step, g.step, scalar.
        cg_residual: ||g - (F + damping I) x|| / ||g||, scalar.
        cg_iterations: iterations that changed x, scalar.
    """

    step: Params
    gradient_dot_direction: Float[Array, ""]
    predicted_gain: Float[Array, ""]
    cg_residual: Float[Array, ""]
    cg_iterations: Int[Array, ""]


class PolicyChange(NamedTuple):
    """How far an update moved a policy; all scalars, KL divergences in nats.

    Attributes:
        surrogate_gain: L(new) - L(old).
        kl: mean of KL(old || new) over the states.
        kl_max: its maximum over the states.
        entropy: mean entropy of the new policy.
    """

    surrogate_gain: Float[Array, ""]
    kl: Float[Array, ""]
    kl_max: Float[Array, ""]
    entropy: Float[Array, ""]


class TrustRegionInfo(NamedTuple):
    """What one step did; all scalars, KL divergences in nats, gains in units of the surrogate.

    Attributes:
        surrogate_gain: L(new) - L(old); 0 if the step was rejected.
        surrogate_gain_predicted: its first-order prediction at the fraction taken.
        surrogate_gain_ratio: actual over predicted gain; 1 where the surrogate is linear.
        kl: mean of KL(old || new) over the states.
        kl_max: its maximum over the states.
        entropy: mean entropy of the new policy.
        cg_residual: relative residual of the linear solve.
        cg_iterations: conjugate-gradient iterations used.
        gradient_dot_direction: g.x, the squared length of the gradient in the inverse metric.
        step_fraction: fraction of the full step taken by the line search; 0 if rejected.
        step_rejected: 1 if no candidate was accepted and the parameters stayed as they were.
    """

    surrogate_gain: Float[Array, ""]
    surrogate_gain_predicted: Float[Array, ""]
    surrogate_gain_ratio: Float[Array, ""]
    kl: Float[Array, ""]
    kl_max: Float[Array, ""]
    entropy: Float[Array, ""]
    cg_residual: Float[Array, ""]
    cg_iterations: Int[Array, ""]
    gradient_dot_direction: Float[Array, ""]
    step_fraction: Float[Array, ""]
    step_rejected: Bool[Array, ""]


def importance_sampled_surrogate(
    actions: PyTree[Num[Array, "..."]],
    advantages: Float[Array, "*batch"],
    entropy_coef: Float[Array, ""] | float = 0.0,
) -> Surrogate:
    """Returns L(new) = mean of new(a|s) / old(a|s) A(s, a), equation 14, with a drawn from old.

    Its gradient at new = old is the policy gradient. `entropy_coef` adds that many times the mean
    entropy of the new policy, against a collapse that no exploration comes back from.

    Args:
        actions: the actions taken, arrays `[*batch, ...]`.
        advantages: their advantages.
        entropy_coef: weight of the entropy.
    """

    def surrogate(new: Distribution, old: Distribution) -> Float[Array, ""]:
        log_ratio = new.log_prob(actions) - old.log_prob(actions)
        chex.assert_equal_shape([log_ratio, advantages])
        return jnp.mean(jnp.exp(log_ratio) * advantages + entropy_coef * new.entropy())

    return surrogate


def kl_length(
    gradient: Params,
    direction: Params,
    *,
    max_kl: Float[Array, ""] | float,
    damping: Float[Array, ""] | float,
    damped: bool = True,
) -> Float[Array, ""]:
    """Returns sqrt(2 max_kl / c), c the curvature along x with (F + damping I) x = gradient.

    Conjugate gradient leaves x^T (F + damping I) x = g.x, so neither curvature costs a product.
    Where g leaves the range of F, x^T F x has no floor and the length would have no ceiling: if it
    is less than `LEAST_SHARE` of the damped curvature, the damped one is taken.

    Args:
        gradient: gradient g of the surrogate, a tree like the parameters.
        direction: x.
        max_kl: radius of the trust region, in nats.
        damping: what was added to the diagonal of F in the solve.
        damped: whether c is x^T (F + damping I) x, as most implementations have it, or x^T F x. The
            damped one overstates the KL divergence, so the step falls short of `max_kl`; the other
            one overshoots where F is known from few states.
    """
    curvature = damped_curvature = optax.tree.vdot(gradient, direction)
    if not damped:
        undamped = curvature - damping * optax.tree.vdot(direction, direction)
        felt = undamped > LEAST_SHARE * damped_curvature
        curvature = jnp.where(felt, undamped, damped_curvature)
    positive = curvature > 0
    return jnp.where(positive, jnp.sqrt(2 * max_kl / jnp.where(positive, curvature, 1.0)), 0.0)


def natural_step(
    gradient: Params,
    solve: Solve,
    *,
    max_kl: Float[Array, ""] | float,
    damping: Float[Array, ""] | float,
    damped_scaling: bool = True,
    step_size: Float[Array, ""] | float | None = None,
) -> NaturalStep:
    """Returns the step to about the edge of the trust region, before any acceptance test.

    Args:
        gradient: gradient g of the surrogate, a tree like the parameters.
        solve: `g -> x` with (F + damping I) x = g; see `trpo_jax.solvers.damped_solver`.
        max_kl: radius of the trust region, in nats.
        damping: what `solve` adds to the diagonal of F.
        damped_scaling: see `damped` of `kl_length`.
        step_size: takes step_size x instead, whatever its KL divergence.
    """
    solution = solve(gradient)
    length = step_size
    if length is None:
        length = kl_length(
            gradient, solution.x, max_kl=max_kl, damping=damping, damped=damped_scaling
        )
    gradient_dot_direction = optax.tree.vdot(gradient, solution.x)
    length = jnp.asarray(length, gradient_dot_direction.dtype)
    return NaturalStep(
        step=optax.tree.scale(length, solution.x),
        gradient_dot_direction=gradient_dot_direction,
        predicted_gain=length * gradient_dot_direction,
        cg_residual=solution.residual,
        cg_iterations=solution.iterations,
    )


def surrogate_gradient(
    params: Params, distribution_fn: Callable[[Params], Distribution], surrogate: Surrogate
) -> Params:
    """Returns the gradient of L at the old parameters, with full float32 matrix products."""
    with jax.default_matmul_precision("float32"):
        old = distribution_fn(params)
        return jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)


def measure_change(
    distribution_fn: Callable[[Params], Distribution],
    surrogate: Surrogate,
    old_params: Params,
    new_params: Params,
) -> PolicyChange:
    """Returns how far the policy moved from the old to the new parameters."""
    with jax.default_matmul_precision("float32"):
        old, new = distribution_fn(old_params), distribution_fn(new_params)
        kl = old.kl(new)
        gain = surrogate(new, old) - surrogate(old, old)
    return PolicyChange(gain, jnp.mean(kl), jnp.max(kl), jnp.mean(new.entropy()))


def full_step(
    params: Params,
    distribution_fn: Callable[[Params], Distribution],
    surrogate: Surrogate,
    full: NaturalStep,
) -> tuple[Params, TrustRegionInfo]:
    """Takes a natural step whole, whatever comes of it.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at those states to the objective.
        full: the step.

    Returns:
        The new parameters and what happened.
    """
    new_params = jax.tree.map(lambda p, s: p + s.astype(p.dtype), params, full.step)
    taken = jnp.ones((), bool)
    return new_params, _describe(
        params, new_params, distribution_fn, surrogate, full, taken, jnp.ones(())
    )


def search_along(
    params: Params,
    distribution_fn: Callable[[Params], Distribution],
    surrogate: Surrogate,
    full: NaturalStep,
    *,
    max_kl: Float[Array, ""] | float,
    line_search_steps: int,
    line_search_shrink: Float[Array, ""] | float,
    kl_peak: Float[Array, ""] | float = 0.0,
    acceptance: Surrogate | None = None,
    state_weights: Float[Array, "*batch"] | None = None,
) -> tuple[Params, TrustRegionInfo]:
    """Takes the largest acceptable fraction of a natural step; none leaves the parameters alone.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at those states to the objective.
        full: the step.
        max_kl: bound on the mean of KL(old || new), in nats.
        line_search_steps: candidates tried at the most.
        line_search_shrink: factor between one candidate and the next.
        kl_peak: bound on KL(old || new) at any one state, as a multiple of `max_kl`; 0 for none.
        acceptance: maps (new, old) to a number that has to be positive; the gain of the surrogate
            if None.
        state_weights: of each state in the mean of KL(old || new), of mean 1; all 1 if None.

    Returns:
        The new parameters and what happened.
    """
    with jax.default_matmul_precision("float32"):
        old = distribution_fn(params)
        old_value = surrogate(old, old)
        gain = lambda new, old: surrogate(new, old) - old_value
        accepted_gain = gain if acceptance is None else acceptance

        def evaluate(candidate):
            new = distribution_fn(candidate)
            kl = old.kl(new)
            mean_kl = jnp.mean(kl if state_weights is None else state_weights * kl)
            allowed = jnp.where(kl_peak > 0, kl_peak, jnp.inf)
            return accepted_gain(new, old), jnp.maximum(mean_kl, jnp.max(kl) / allowed)

        search = backtracking(
            evaluate, params, full.step, max_kl, line_search_shrink, line_search_steps
        )
    return search.params, _describe(
        params, search.params, distribution_fn, surrogate, full, search.accepted, search.fraction
    )


def trust_region_step(
    params: Params,
    distribution_fn: Callable[[Params], Distribution],
    surrogate: Surrogate,
    solve: Solve,
    *,
    max_kl: Float[Array, ""] | float,
    damping: Float[Array, ""] | float,
    line_search_steps: int,
    line_search_shrink: Float[Array, ""] | float,
    kl_peak: Float[Array, ""] | float = 0.0,
    damped_scaling: bool = True,
) -> tuple[Params, TrustRegionInfo]:
    """Takes one trust-region step; the parameters are returned unchanged if none is acceptable.

    Surrogate, gradient and KL divergences run with full float32 matrix products whatever the
    device's default is, since a KL divergence of 1e-2 is a difference of numbers near 1. The
    direction does not need it, and `solve` keeps the precision that its products were made with.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at those states to the objective L(new), which is
            to be increased.
        solve: `gradient -> x` with (F + damping I) x = gradient, F the Fisher matrix at `params`,
            possibly over fewer states; see `trpo_jax.solvers.damped_solver`.
        max_kl: radius of the trust region, in nats.
        damping: what `solve` adds to the diagonal of F.
        line_search_steps: candidates tried at the most.
        line_search_shrink: factor between one candidate and the next.
        kl_peak: see `search_along`.
        damped_scaling: see `damped` of `kl_length`.

    Returns:
        The new parameters and what happened.
    """
    full = natural_step(
        surrogate_gradient(params, distribution_fn, surrogate),
        solve,
        max_kl=max_kl,
        damping=damping,
        damped_scaling=damped_scaling,
    )
    return search_along(
        params,
        distribution_fn,
        surrogate,
        full,
        max_kl=max_kl,
        line_search_steps=line_search_steps,
        line_search_shrink=line_search_shrink,
        kl_peak=kl_peak,
    )


def _describe(
    old_params, new_params, distribution_fn, surrogate, full, accepted, fraction
) -> TrustRegionInfo:
    change = measure_change(distribution_fn, surrogate, old_params, new_params)
    gain = jnp.where(accepted, change.surrogate_gain, 0.0)
    predicted = jnp.where(accepted, fraction * full.predicted_gain, 0.0)
    return TrustRegionInfo(
        surrogate_gain=gain,
        surrogate_gain_predicted=predicted,
        surrogate_gain_ratio=jnp.where(
            predicted > 0, gain / jnp.where(predicted > 0, predicted, 1.0), 0.0
        ),
        kl=change.kl,
        kl_max=change.kl_max,
        entropy=change.entropy,
        cg_residual=full.cg_residual,
        cg_iterations=full.cg_iterations,
        gradient_dot_direction=full.gradient_dot_direction,
        step_fraction=fraction,
        step_rejected=~accepted,
    )
