"""Steps in a trust region that respect a limit on a cost.

One update of a constrained policy solves (Achiam et al. 2017, arXiv:1705.10528, equation 11)

    maximise g.x   subject to   c + b.x <= 0   and   1/2 x^T H x <= max_kl.

This is first order in the reward and the cost, and second order in the KL divergence. g is the
gradient of the surrogate of the reward, and b is the gradient of the surrogate of the cost.
H = F + damping I. c is the cost minus its limit.

Let p be the solution without the limit, w = H^-1 b and s = b.w. There are three cases:

- If c + b.p <= 0, the solution is p.
- If the plane c + b.x = 0 meets the region, the solution is
  -(c / s) w + sqrt((2 max_kl - c^2 / s) / (2 max_kl - (b.p)^2 / s)) (p - (b.p / s) w).
  The first term is the point of the plane that is nearest to 0. The second term goes from there to
  the edge of the region, along the part of p inside the plane.
- Otherwise no step in the region reaches the limit. Then the step is -sqrt(2 max_kl / s) w, which
  lowers the cost as much as possible.

In the second case, the solution also equals H^-1 (g - nu b) / lambda, with multipliers lambda and
nu = (lambda c + b.H^-1 g) / s. The formula above does not need the multipliers.
`docs/constraints.md` derives it, with all signs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from trpo_jax.distributions import Distribution
from trpo_jax.trust_region import NaturalStep, Params, Surrogate

LEAST_INSIDE = 1e-6  # of 2 max_kl; a part of p inside the plane that is smaller is rounding


class ConstrainedStep(NamedTuple):
    """A step to about the edge of the trust region that respects a limit.

    Attributes:
        step: the step.
        active: whether the limit changed the step, scalar.
        recovery: whether no step in the region reaches the limit, so that the step only lowers the
            cost, scalar.
    """

    step: NaturalStep
    active: Bool[Array, ""]
    recovery: Bool[Array, ""]


class CostSide(NamedTuple):
    """The numbers of the cost that a step needs.

    Attributes:
        gradient: b, the gradient of the surrogate of the cost, a tree like the parameters.
        direction: w with (F + damping I) w = b.
        excess: c, the cost minus its limit, in units of the surrogate, scalar.
    """

    gradient: Params
    direction: Params
    excess: Float[Array, ""]


def cost_surrogate(
    actions: Params, cost_advantages: Float[Array, "*batch"]
) -> Callable[[Distribution, Distribution], Float[Array, ""]]:
    """Returns L_C(new) = mean of (new(a|s) / old(a|s) - 1) (A_C(s, a) - mean A_C).

    L_C is the change of the cost by a step, to first order in the policy. It is 0 at the old
    policy.

    Args:
        actions: the actions taken, arrays `[*batch, ...]`.
        cost_advantages: A_C, the advantages of these actions with respect to the cost.

    Examples:
        >>> old = trpo_jax.Categorical(jnp.zeros((2, 2)))
        >>> new = trpo_jax.Categorical(jnp.log(jnp.array([[0.6, 0.4], [0.5, 0.5]])))
        >>> surrogate = cost_surrogate(jnp.array([0, 1]), cost_advantages=jnp.array([1.0, -1.0]))
        >>> print(f"{surrogate(new, old):.2f}")  # the ratios are 1.2 and 1
        0.10
    """
    centred = cost_advantages - jnp.mean(cost_advantages)

    def surrogate(new: Distribution, old: Distribution) -> Float[Array, ""]:
        return jnp.mean((jnp.exp(new.log_prob(actions) - old.log_prob(actions)) - 1) * centred)

    return surrogate


def constrained_step(
    gradient: Params, plain: NaturalStep, cost: CostSide, max_kl: Float[Array, ""] | float
) -> ConstrainedStep:
    """Returns the step of CPO: the solution of the program at the top of this module.

    Args:
        gradient: g.
        plain: p, scaled with the damped curvature; see `trpo_jax.trust_region.natural_step`.
        cost: b, w and c.
        max_kl: radius of the trust region, in nats.

    Examples:
        >>> from trpo_jax.solvers import damped_solver
        >>> from trpo_jax.trust_region import natural_step
        >>> solve = damped_solver(lambda v: v, damping=0.0, num_iterations=10)  # H = I
        >>> g, b = jnp.array([1.0, 0.0]), jnp.array([0.6, 0.8])
        >>> plain = natural_step(g, solve, max_kl=0.5, damping=0.0)
        >>> cost = CostSide(gradient=b, direction=solve(b).x, excess=jnp.array(-0.1))
        >>> found = constrained_step(g, plain, cost, max_kl=0.5)
        >>> print(jnp.array_str(found.step.step, precision=3), found.active, found.recovery)
        [ 0.856 -0.517] True False
    """
    c, p, w = cost.excess, plain.step, cost.direction
    s, along = optax.tree.vdot(cost.gradient, w), optax.tree.vdot(cost.gradient, p)
    # If the cost does not depend on the policy, s = 0, and no step can change the cost.
    felt = s > 0
    safe_s = jnp.where(felt, s, 1.0)
    edge = 2 * max_kl
    beyond = c**2 / safe_s >= edge  # the plane does not meet the region
    active = felt & (c + along > 0) & ~(beyond & (c < 0))
    recovery = active & beyond
    inside = edge - along**2 / safe_s
    has_inside = inside > LEAST_INSIDE * edge
    ratio = jnp.maximum(edge - c**2 / safe_s, 0.0) / jnp.where(has_inside, inside, 1.0)
    share = jnp.where(has_inside, jnp.sqrt(ratio), 0.0)
    of_w = -c / safe_s - share * along / safe_s
    share = jnp.where(recovery, 0.0, share)
    of_w = jnp.where(recovery, -jnp.sqrt(edge / safe_s), of_w)
    # A select, so that the step without an active limit is exactly the plain step.
    step = jax.tree.map(lambda p, w: jnp.where(active, share * p + of_w * w, p), p, w)
    return ConstrainedStep(_replaced(plain, gradient, step, active), active, recovery)


def projected_step(
    gradient: Params, plain: NaturalStep, cost: CostSide, kl_metric: bool = True
) -> ConstrainedStep:
    """Returns the step of PCPO: the point of c + b.x <= 0 that is nearest to the plain step.

    In the metric of the KL divergence, it is p - max(0, (c + b.p) / s) w. In the metric of the
    parameters, b replaces w, also in s (Yang et al. 2020, arXiv:2010.03152, equation 4). If the
    cost is above its limit already, the step may leave the trust region. The line search shortens
    it.

    Args:
        gradient: g.
        plain: p.
        cost: b, w and c.
        kl_metric: whether the squared distance is x^T H x. If not, it is x.x.

    Examples:
        >>> from trpo_jax.solvers import damped_solver
        >>> from trpo_jax.trust_region import natural_step
        >>> solve = damped_solver(lambda v: v, damping=0.0, num_iterations=10)  # H = I
        >>> g, b = jnp.array([1.0, 0.0]), jnp.array([0.6, 0.8])
        >>> plain = natural_step(g, solve, max_kl=0.5, damping=0.0)
        >>> cost = CostSide(gradient=b, direction=solve(b).x, excess=jnp.array(-0.1))
        >>> found = projected_step(g, plain, cost)
        >>> print(jnp.array_str(found.step.step, precision=3))  # (1, 0) - 0.5 (0.6, 0.8)
        [ 0.7 -0.4]
    """
    normal = cost.direction if kl_metric else cost.gradient
    s = optax.tree.vdot(cost.gradient, normal)
    too_far = cost.excess + optax.tree.vdot(cost.gradient, plain.step)
    active = (too_far > 0) & (s > 0)
    back = jnp.where(active, too_far / jnp.where(s > 0, s, 1.0), 0.0)
    step = jax.tree.map(lambda p, n: jnp.where(active, p - back * n, p), plain.step, normal)
    return ConstrainedStep(_replaced(plain, gradient, step, active), active, jnp.zeros((), bool))


def cost_acceptance(
    surrogate: Surrogate, of_cost: Surrogate, excess: Float[Array, ""]
) -> Surrogate:
    """Returns a function `(new, old) -> scalar` that is positive if a line search may accept new.

    The cost may rise up to its limit. If it is above the limit, it may not rise at all. If the cost
    is at most its limit, the surrogate of the reward has to improve. Otherwise the cost has to
    fall.

    Args:
        surrogate: the surrogate of the reward.
        of_cost: the surrogate of the cost, from `cost_surrogate`.
        excess: c, the cost minus its limit, in units of the surrogate.

    Examples:
        >>> gain, rise = (lambda new, old: new.logits[0]), (lambda new, old: new.logits[1])
        >>> acceptance = cost_acceptance(gain, rise, excess=jnp.array(-0.5))
        >>> old = trpo_jax.Categorical(jnp.array([0.0, 0.0]))
        >>> print(acceptance(trpo_jax.Categorical(jnp.array([0.25, 0.4])), old))  # below the limit
        0.25
        >>> print(acceptance(trpo_jax.Categorical(jnp.array([0.25, 0.6])), old))  # above the limit
        -1.0
    """

    def acceptance(new: Distribution, old: Distribution) -> Float[Array, ""]:
        gain = surrogate(new, old) - surrogate(old, old)
        rise = of_cost(new, old)
        better = jnp.where(excess > 0, jnp.where(jnp.isfinite(gain), -rise, gain), gain)
        return jnp.where(rise <= jnp.maximum(-excess, 0.0), better, -1.0)

    return acceptance


def _replaced(plain: NaturalStep, gradient: Params, step: Params, active) -> NaturalStep:
    gain = jnp.where(active, optax.tree.vdot(gradient, step), plain.predicted_gain)
    return plain._replace(step=step, predicted_gain=gain)
