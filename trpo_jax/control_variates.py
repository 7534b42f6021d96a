"""A control variate for policy gradients: the first-order expansion of a critic Q(s, a).

The expansion is around the mean action mu(s). It estimates the advantage of an action as
Abar = grad_a Q . (a - mu). The estimate of the policy gradient subtracts Abar from the sampled
advantage A, and adds the exact expectation of Abar (Gu et al. 2017, arXiv:1611.02247, sections 3.1
and 3.2):

    g = mean of [grad log pi(a|s) (A - eta Abar) + eta grad_a Q . grad mu(s)]

If eta is fixed, g is an unbiased estimate of the policy gradient for any Q that was not fitted to
the actions of this batch. The better Q is, the smaller is the variance of g.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.advantages import standardize
from trpo_jax.distributions import DiagGaussian
from trpo_jax.trust_region import Surrogate, importance_sampled_surrogate


class ControlVariate(NamedTuple):
    """The first-order expansion of Q around the means of the action distributions.

    Attributes:
        slopes: grad_a Q(s, a) at a = mu(s).
        advantages: Abar = slopes . (a - mu(s)).
    """

    slopes: Float[Array, "*B D"]
    advantages: Float[Array, "*B"]


def control_variate(
    action_values: Callable[[Float[Array, "*B D"]], Float[Array, "*B"]],
    means: Float[Array, "*B D"],
    actions: Float[Array, "*B D"],
) -> ControlVariate:
    """Returns the first-order expansion of Q around the means, at the actions taken.

    Args:
        action_values: maps an action for each state to Q.
        means: mu(s), the means of the distributions from which the actions were drawn.
        actions: a.

    Examples:
        >>> actions = jnp.array([[1.0], [-2.0]])
        >>> control = control_variate(lambda a: 3 * a[..., 0], jnp.zeros((2, 1)), actions)
        >>> control.advantages
        Array([ 3., -6.], dtype=float32)
    """
    slopes = jax.grad(lambda a: jnp.sum(action_values(a)))(means)
    return ControlVariate(slopes, jnp.sum(slopes * (actions - means), axis=-1))


# Each function computes eta for each action from the sampled advantages A and from Abar.
CONTROL_WEIGHTS: dict[
    str, Callable[[Float[Array, "*B"], Float[Array, "*B"]], Float[Array, "*B"]]
] = {
    "conservative": lambda advantages, control: jnp.maximum(jnp.sign(advantages * control), 0.0),
    "aggressive": lambda advantages, control: jnp.sign(advantages * control),
    "standard": lambda advantages, control: jnp.ones_like(advantages),
}


def controlled_surrogate(
    actions: Float[Array, "*B D"],
    advantages: Float[Array, "*B"],
    control: ControlVariate,
    eta: Float[Array, "*B"],
    entropy_coef: Float[Array, ""] | float = 0.0,
    *,
    values: Float[Array, "*B"] | float = 0.0,
    common_scale: bool = True,
) -> Surrogate:
    """Returns L(new) = mean of [ratio (A - eta Abar) + eta slopes . (mu_new - mu_old)].

    A - eta Abar is standardised. The gradient at new = old is the gradient of Q-Prop, up to a
    factor. The second part is linear in the mean. If it were Q itself, the line search could
    exploit the errors of Q.

    Args:
        actions: the actions taken.
        advantages: A.
        control: the expansion of Q.
        eta: weight of the control variate for each action, from one of `CONTROL_WEIGHTS`.
        entropy_coef: weight of the mean entropy of the new policy, which is added to L.
        values: see `standardize`.
        common_scale: whether both parts are divided by the standard deviation of A - eta Abar.
            If not, only the first part is, as in the code of the authors. The gradient is then not
            the policy gradient (Tucker et al. 2018, arXiv:1802.10031).

    Examples:
        >>> actions, advantages = jnp.array([[1.0], [-2.0]]), jnp.array([2.0, -1.0])
        >>> control = control_variate(lambda a: 3 * a[..., 0], jnp.zeros((2, 1)), actions)
        >>> eta = CONTROL_WEIGHTS["conservative"](advantages, control.advantages)
        >>> surrogate = controlled_surrogate(actions, advantages, control, eta)
        >>> old = trpo_jax.DiagGaussian(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
        >>> print(surrogate(old, old))
        0.0
    """
    residual = advantages - eta * control.advantages
    sampled = importance_sampled_surrogate(actions, standardize(residual, values), entropy_coef)
    deviation = jnp.std(residual) if common_scale else 1.0
    slopes = eta[..., None] * control.slopes / jnp.where(deviation > 0, deviation, 1.0)

    def surrogate(new: DiagGaussian, old: DiagGaussian) -> Float[Array, ""]:
        analytic = jnp.sum(slopes * (new.mode() - old.mode()), axis=-1)
        return sampled(new, old) + jnp.mean(analytic)

    return surrogate
