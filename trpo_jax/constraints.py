"""Steps in a trust region that respect a limit on a cost.

One update of a constrained policy solves, to first order in the reward and the cost and to second
order in the KL divergence (Achiam et al. 2017, arXiv:1705.10528, equation 11),

    maximise g.x   subject to   c + b.x <= 0   and   1/2 x^T H x <= max_kl,

with g the gradient of the reward's surrogate, b that of the cost's, H = F + damping I, and c the
cost above its limit. Let p be the solution without the constraint, w = H^-1 b and s = b.w. Then
the solution is

- p, where c + b.p <= 0;
- -(c / s) w + sqrt((2 max_kl - c^2 / s) / (2 max_kl - (b.p)^2 / s)) (p - (b.p / s) w), where the
  plane c + b.x = 0 meets the region: the point of the plane that is nearest to 0, and from there
  along the part of p inside the plane, up to the edge of the region;
- -sqrt(2 max_kl / s) w otherwise, where no step within the region is good enough: the cost falls as
  far as it can.

The second line is H^-1 (g - nu b) / lambda with nu = (lambda c + b.H^-1 g) / s, without the two
multipliers. `docs/constraints.md` derives it, with all signs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from trpo_jax.distributions import Distribution
from trpo_jax.trust_region import NaturalStep, Params, Surrogate

LEAST_INSIDE = 1e-6  # of 2 max_kl: less of p inside the plane is rounding


class ConstrainedStep(NamedTuple):
    """A step to about the edge of the trust region that respects a limit.

    Attributes:
        step: the step.
        active: whether the limit changed it, scalar.
        recovery: whether no step in the region reaches the limit, and it only lowers the cost,
            scalar.
    """

    step: NaturalStep
    active: Bool[Array, ""]
    recovery: Bool[Array, ""]


class CostSide(NamedTuple):
    """What a step has to know of the cost.

    Attributes:
        gradient: b, the gradient of the cost's surrogate, a tree like the parameters.
        direction: w with (F + damping I) w = b.
        excess: c, the cost above its limit, in units of the surrogate, scalar.
    """

    gradient: Params
    direction: Params
    excess: Float[Array, ""]


def cost_surrogate(
    actions: Params, cost_advantages: Float[Array, "*batch"]
) -> Callable[[Distribution, Distribution], Float[Array, ""]]:
    """Returns L_C(new) = mean of (new(a|s) / old(a|s) - 1) (A_C(s, a) - mean A_C).

    It is the change of the cost of a step, to first order in the policy. It is 0 at the old policy.

    Args:
        actions: the actions taken, arrays `[*batch, ...]`.
        cost_advantages: their advantages A_C.
    """
    centred = cost_advantages - jnp.mean(cost_advantages)

    def surrogate(new: Distribution, old: Distribution) -> Float[Array, ""]:
        return jnp.mean((jnp.exp(new.log_prob(actions) - old.log_prob(actions)) - 1) * centred)

    return surrogate


def constrained_step(
    gradient: Params, plain: NaturalStep, cost: CostSide, max_kl: Float[Array, ""] | float
) -> ConstrainedStep:
    """Returns the solution of the program at the top of this file.

    Args:
        gradient: g.
        plain: p, with the length of the damped matrix; see `trpo_jax.trust_region.natural_step`.
        cost: b, w and c.
        max_kl: radius of the trust region, in nats.
    """
    c, p, w = cost.excess, plain.step, cost.direction
    s, along = optax.tree.vdot(cost.gradient, w), optax.tree.vdot(cost.gradient, p)
    # Where the cost does not depend on the policy, s = 0: there is nothing to be done about it.
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
    # A select: without an active limit the step is the plain one, bit for bit.
    step = jax.tree.map(lambda p, w: jnp.where(active, share * p + of_w * w, p), p, w)
    return ConstrainedStep(_replaced(plain, gradient, step, active), active, recovery)


def projected_step(
    gradient: Params, plain: NaturalStep, cost: CostSide, kl_metric: bool = True
) -> ConstrainedStep:
    """Returns the point of the half-plane c + b.x <= 0 that is nearest to the plain step.

    It is p - max(0, (c + b.p) / s) w in the metric of the KL divergence, and the same with b in
    place of w in that of the parameters (Yang et al. 2020, arXiv:2010.03152, equation 4). It may
    leave the trust region, where the limit is exceeded already: the line search brings it back.

    Args:
        gradient: g.
        plain: p.
        cost: b, w and c.
        kl_metric: whether distances are x^T H x; else they are x.x.
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
    """Returns what a line search has to find positive: (new, old) -> scalar.

    The cost may rise up to its limit, and not at all above it. Below the limit the reward's
    surrogate has to improve; above it, lowering the cost comes first.

    Args:
        surrogate: of the reward.
        of_cost: from `cost_surrogate`.
        excess: c, the cost above its limit, in units of the surrogate.
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
