"""A control variate for policy gradients: a critic Q(s, a), to first order around the mean action.

What the expansion says of an action, Abar = grad_a Q . (a - mu), is taken out of the sampled
advantage and put back as its exact expectation (Gu et al. 2017, arXiv:1611.02247, sections 3.1 and
3.2):

g = mean of [grad log pi(a|s) (A - eta Abar) + eta grad_a Q . grad mu(s)]

With eta fixed this is the policy gradient whatever Q is, as long as Q has not seen the actions; the
better Q is, the less g varies.
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
    """The first-order expansion of Q around the means of the actions' distributions.

    Attributes:
        slopes: grad_a Q(s, a) at a = mu(s).
        advantages: slopes . (a - mu(s)).
    """

    slopes: Float[Array, "*B D"]
    advantages: Float[Array, "*B"]


def control_variate(
    action_values: Callable[[Float[Array, "*B D"]], Float[Array, "*B"]],
    means: Float[Array, "*B D"],
    actions: Float[Array, "*B D"],
) -> ControlVariate:
    """Returns the expansion of Q around the means, at the actions taken.

    Args:
        action_values: maps an action for each state to Q.
        means: mu(s), of the distributions that the actions were drawn from.
        actions: a.
    """
    slopes = jax.grad(lambda a: jnp.sum(action_values(a)))(means)
    return ControlVariate(slopes, jnp.sum(slopes * (actions - means), axis=-1))


# eta of each action, from the sampled advantages A and the control variate's Abar, by name.
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

    Its gradient at new = old is that of Q-Prop. The second part is linear in the mean: Q itself
    there would invite the line search to exploit Q's errors.

    Args:
        actions: the actions taken.
        advantages: A.
        control: the expansion of Q.
        eta: weight of the control variate.
        entropy_coef: weight of the entropy, beside standardised advantages.
        values: what A is a difference of; see `standardize`.
        common_scale: whether both parts are divided by the deviation of A - eta Abar. Otherwise
            only the first is, as in the authors' code: no longer the policy gradient (Tucker et
            al. 2018, arXiv:1802.10031).
    """
    residual = advantages - eta * control.advantages
    sampled = importance_sampled_surrogate(actions, standardize(residual, values), entropy_coef)
    deviation = jnp.std(residual) if common_scale else 1.0
    slopes = eta[..., None] * control.slopes / jnp.where(deviation > 0, deviation, 1.0)

    def surrogate(new: DiagGaussian, old: DiagGaussian) -> Float[Array, ""]:
        analytic = jnp.sum(slopes * (new.mode() - old.mode()), axis=-1)
        return sampled(new, old) + jnp.mean(analytic)

    return surrogate
