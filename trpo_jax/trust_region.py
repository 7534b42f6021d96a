"""The trust-region step: gradient, direction, length and acceptance.

The step maximises L(params) subject to mean KL(old || new) <= max_kl (Schulman et al. 2015,
arXiv:1502.05477, equation 14), as in appendix C of the paper:

1. Conjugate gradient finds the direction of the natural gradient.
2. A quadratic model of the KL divergence scales the step to about the edge of the region.
3. A line search shortens the step until the surrogate improves and the KL divergence itself is
   small enough.

The guarantee of the paper is for a bound on the KL divergence at every state (theorem 1). Equation
12 replaces this bound by the mean. Rare states may then change a hundred times as much as the mean.
`kl_peak` also bounds the KL divergence at each state of the batch.
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

LEAST_SHARE = 0.01  # of the damped curvature, so an undamped step is at most ten times as long

Params = PyTree[Array]
Solve = Callable[[Params], SolverResult]
Surrogate = Callable[[Distribution, Distribution], Float[Array, ""]]


class NaturalStep(NamedTuple):
    """A step to about the edge of the trust region, which no line search has checked yet.

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
    """The change of a policy by an update. All numbers are scalars, KL divergences are in nats.

    Attributes:
        surrogate_gain: L(new) - L(old).
        kl: mean of KL(old || new) over the states.
        kl_max: maximum of KL(old || new) over the states.
        entropy: mean entropy of the new policy, in nats.
    """

    surrogate_gain: Float[Array, ""]
    kl: Float[Array, ""]
    kl_max: Float[Array, ""]
    entropy: Float[Array, ""]


class TrustRegionInfo(NamedTuple):
    """Measurements of one step. All numbers are scalars, KL divergences are in nats.

    Gains are in units of the surrogate.

    Attributes:
        surrogate_gain: L(new) - L(old); 0 if the step was rejected.
        surrogate_gain_predicted: first-order prediction of the gain at the fraction taken.
        surrogate_gain_ratio: actual gain / predicted gain; 1 if the surrogate is linear.
        kl: mean of KL(old || new) over the states.
        kl_max: maximum of KL(old || new) over the states.
        entropy: mean entropy of the new policy, in nats.
        cg_residual: relative residual of the linear solve.
        cg_iterations: number of iterations of conjugate gradient.
        gradient_dot_direction: g.x, the squared length of the gradient in the inverse metric.
        step_fraction: fraction of the full step that the line search took; 0 if rejected.
        step_rejected: whether no candidate was accepted, so that the parameters stayed as they
            were.
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
    """Returns L(new) = mean of new(a|s) / old(a|s) A(s, a), the objective of equation 14.

    The actions a were drawn from old. The gradient of L at new = old is the policy gradient.
    `entropy_coef` times the mean entropy of the new policy is added to L. It keeps the policy from
    becoming deterministic too soon.

    Args:
        actions: the actions taken, arrays `[*batch, ...]`.
        advantages: the advantages of these actions.
        entropy_coef: weight of the entropy.

    Returns:
        A function `(new, old) -> L` of two distributions.

    Examples:
        >>> old = trpo_jax.Categorical(jnp.zeros((2, 2)))
        >>> new = trpo_jax.Categorical(jnp.log(jnp.array([[0.6, 0.4], [0.5, 0.5]])))
        >>> surrogate = importance_sampled_surrogate(
        ...     actions=jnp.array([0, 1]), advantages=jnp.array([1.0, -1.0])
        ... )
        >>> print(f"{surrogate(old, old):.2f}, {surrogate(new, old):.2f}")  # ratios 1.2 and 1
        0.00, 0.10
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
    """Returns sqrt(2 max_kl / c), which scales x to a step at the edge of the trust region.

    x solves (F + damping I) x = g, and c is the curvature x^T (F + damping I) x or x^T F x. With
    conjugate gradient, x^T (F + damping I) x = g.x, so neither curvature costs a product with F.

    If g has a part outside of the range of F, x^T F x may be very small, and the step would be far
    too long. So if x^T F x is less than `LEAST_SHARE` of the damped curvature, c is the damped
    curvature.

    Args:
        gradient: gradient g of the surrogate, a tree like the parameters.
        direction: x.
        max_kl: radius of the trust region, in nats.
        damping: the number that was added to the diagonal of F in the solve.
        damped: whether c is x^T (F + damping I) x, as in most implementations, or x^T F x. The
            damped curvature overstates the KL divergence, so the step falls short of `max_kl`. The
            undamped curvature gives a step that is too long if F was computed from few states.

    Examples:
        >>> g = jnp.ones(2)  # F + damping I = I, so x = g
        >>> print(kl_length(g, g, max_kl=0.25, damping=0.75))  # c = 2
        0.5
        >>> print(kl_length(g, g, max_kl=0.25, damping=0.75, damped=False))  # c = 0.5
        1.0
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
    kl_penalty: Float[Array, ""] | float = 0.0,
    step_size: Float[Array, ""] | float | None = None,
) -> NaturalStep:
    """Returns the step to about the edge of the trust region, before any line search.

    A penalty b ends the step earlier, where the quadratic model g.s - b/2 s^T (F + damping I) s of
    the penalised surrogate is largest along x. This is at x / b, so b is a lower bound of the
    multiplier of the KL divergence (the objective of Schulman et al. 2015, section 4, inside of
    their constraint).

    Args:
        gradient: gradient g of the surrogate, a tree like the parameters.
        solve: `g -> x` with (F + damping I) x = g; see `trpo_jax.solvers.damped_solver`.
        max_kl: radius of the trust region, in nats.
        damping: the number that `solve` adds to the diagonal of F.
        damped_scaling: see `damped` of `kl_length`.
        kl_penalty: b, in units of the surrogate for each nat; 0 for no penalty.
        step_size: if given, the step is step_size x, whatever its KL divergence is.

    Examples:
        >>> from trpo_jax.solvers import damped_solver
        >>> solve = damped_solver(lambda v: v, damping=0.0, num_iterations=10)  # F = I
        >>> full = natural_step(jnp.ones(2), solve, max_kl=0.25, damping=0.0)
        >>> print(full.step, full.predicted_gain)
        [0.5 0.5] 1.0
        >>> short = natural_step(jnp.ones(2), solve, max_kl=0.25, damping=0.0, kl_penalty=10.0)
        >>> print(short.step, short.predicted_gain)
        [0.1 0.1] 0.2
    """
    solution = solve(gradient)
    length = step_size
    if length is None:
        length = kl_length(
            gradient, solution.x, max_kl=max_kl, damping=damping, damped=damped_scaling
        )
        penalised = jnp.asarray(kl_penalty) > 0
        longest = jnp.where(penalised, 1 / jnp.where(penalised, kl_penalty, 1.0), jnp.inf)
        length = jnp.minimum(length, longest)
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
    """Returns the gradient of L at the old parameters, with full float32 matrix products.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at these states to L.

    Examples:
        >>> distribution_fn = lambda logits: trpo_jax.Categorical(logits[None])  # one state
        >>> surrogate = importance_sampled_surrogate(jnp.array([0]), jnp.array([1.0]))
        >>> surrogate_gradient(jnp.zeros(2), distribution_fn, surrogate)
        Array([ 0.5, -0.5], dtype=float32)
    """
    with jax.default_matmul_precision("float32"):
        old = distribution_fn(params)
        return jax.grad(lambda p: surrogate(distribution_fn(p), old))(params)


def measure_change(
    distribution_fn: Callable[[Params], Distribution],
    surrogate: Surrogate,
    old_params: Params,
    new_params: Params,
) -> PolicyChange:
    """Returns how much the policy changes from the old to the new parameters.

    Args:
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at these states to L.
        old_params: parameters before the update.
        new_params: parameters after the update.

    Examples:
        >>> distribution_fn = lambda logits: trpo_jax.Categorical(logits[None])  # one state
        >>> surrogate = importance_sampled_surrogate(jnp.array([0]), jnp.array([1.0]))
        >>> change = measure_change(distribution_fn, surrogate, jnp.zeros(2), jnp.array([0.2, 0.0]))
        >>> print(f"{change.surrogate_gain:.3f}, {change.kl:.3f} nats")
        0.100, 0.005 nats
    """
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
    """Takes a natural step as it is, without any check.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at these states to L.
        full: the step.

    Returns:
        The new parameters and the measurements of the step.

    Examples:
        >>> from trpo_jax.solvers import damped_solver
        >>> distribution_fn = lambda logits: trpo_jax.Categorical(logits[None])  # one state
        >>> surrogate = importance_sampled_surrogate(jnp.array([0]), jnp.array([1.0]))
        >>> gradient = surrogate_gradient(jnp.zeros(2), distribution_fn, surrogate)
        >>> solve = damped_solver(lambda v: v, damping=0.0, num_iterations=10)
        >>> full = natural_step(gradient, solve, max_kl=0.01, damping=0.0)
        >>> params, info = full_step(jnp.zeros(2), distribution_fn, surrogate, full)
        >>> print(jnp.array_str(params, precision=2), info.step_fraction)
        [ 0.1 -0.1] 1.0
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
    """Takes the largest acceptable fraction of a natural step, or no step if none is acceptable.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at these states to L.
        full: the step.
        max_kl: bound on the mean of KL(old || new), in nats.
        line_search_steps: largest number of candidates to try.
        line_search_shrink: factor between one candidate and the next.
        kl_peak: bound on KL(old || new) at each state, as a multiple of `max_kl`; 0 for no bound.
        acceptance: maps (new, old) to a number. A candidate is acceptable only if the number is
            positive. None stands for the gain of the surrogate.
        state_weights: a weight for each state in the mean of KL(old || new), with mean 1. None
            gives all states the weight 1.

    Returns:
        The new parameters and the measurements of the step.

    Examples:
        >>> from trpo_jax.solvers import damped_solver
        >>> distribution_fn = lambda logits: trpo_jax.Categorical(logits[None])  # one state
        >>> surrogate = importance_sampled_surrogate(jnp.array([0]), jnp.array([1.0]))
        >>> gradient = surrogate_gradient(jnp.zeros(2), distribution_fn, surrogate)
        >>> solve = damped_solver(lambda v: v, damping=0.0, num_iterations=10)
        >>> full = natural_step(gradient, solve, max_kl=0.01, damping=0.0, step_size=4.0)  # too far
        >>> params, info = search_along(
        ...     jnp.zeros(2),
        ...     distribution_fn,
        ...     surrogate,
        ...     full,
        ...     max_kl=0.01,
        ...     line_search_steps=10,
        ...     line_search_shrink=0.5,
        ... )
        >>> print(params, info.step_fraction, f"{info.kl:.3f} nats")
        [ 0.125 -0.125] 0.0625 0.008 nats
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
    kl_penalty: Float[Array, ""] | float = 0.0,
    state_weights: Float[Array, "*batch"] | None = None,
) -> tuple[Params, TrustRegionInfo]:
    """Takes one trust-region step. If no candidate is acceptable, the parameters stay as they are.

    The surrogate, its gradient and the KL divergences use full float32 matrix products, whatever
    the default of the device is. A KL divergence of 1e-2 is a difference of numbers near 1, so it
    needs these digits. The direction does not need them, so `solve` keeps the precision of its own
    products.

    Args:
        params: the old parameters.
        distribution_fn: maps parameters to the action distributions at all states of the batch.
        surrogate: maps (new, old) distributions at these states to the objective L(new), which the
            step increases.
        solve: `gradient -> x` with (F + damping I) x = gradient; see
            `trpo_jax.solvers.damped_solver`. F is the Fisher matrix at `params`. It may use fewer
            states than the surrogate.
        max_kl: radius of the trust region, in nats.
        damping: the number that `solve` adds to the diagonal of F.
        line_search_steps: largest number of candidates to try.
        line_search_shrink: factor between one candidate and the next.
        kl_peak: see `search_along`.
        damped_scaling: see `damped` of `kl_length`.
        kl_penalty: see `natural_step`.
        state_weights: see `search_along`. The matrix F of `solve` should have the same weights.

    Returns:
        The new parameters and the measurements of the step.

    Examples:
        >>> from trpo_jax.fisher import fisher_vector_product
        >>> from trpo_jax.solvers import damped_solver
        >>> observations, params = jnp.eye(3), jnp.zeros((3, 2))
        >>> distribution_fn = lambda params: trpo_jax.Categorical(observations @ params)
        >>> surrogate = importance_sampled_surrogate(
        ...     actions=jnp.array([0, 1, 0]), advantages=jnp.array([1.0, 1.0, -1.0])
        ... )
        >>> product = fisher_vector_product(distribution_fn, params)
        >>> params, info = trust_region_step(
        ...     params,
        ...     distribution_fn,
        ...     surrogate,
        ...     damped_solver(product, damping=0.1, num_iterations=10),
        ...     max_kl=0.01,
        ...     damping=0.1,
        ...     line_search_steps=10,
        ...     line_search_shrink=0.8,
        ... )
        >>> jax.nn.softmax(params).argmax(axis=-1)
        Array([0, 1, 1], dtype=int32)
        >>> bool(info.kl <= 0.01), bool(info.surrogate_gain > 0)
        (True, True)
    """
    full = natural_step(
        surrogate_gradient(params, distribution_fn, surrogate),
        solve,
        max_kl=max_kl,
        damping=damping,
        damped_scaling=damped_scaling,
        kl_penalty=kl_penalty,
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
        state_weights=state_weights,
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
