"""Action distributions: sampling, log-probability, entropy, KL divergence and Fisher metric.

A distribution is a NamedTuple of its own parameters, so it is a pytree: the Jacobian-vector
product of `params -> distribution` is again a record of the same type, holding the tangent of
each parameter. `fisher_product` maps such a tangent v to M v, where M is the Fisher information
matrix in the distribution's own parameters. The Fisher matrix in network parameters is then
F = E[J^T M J] with J the network's Jacobian (Schulman et al. 2015, arXiv:1502.05477, appendix C),
which `trpo_jax.fisher` computes without knowing which distribution it holds.

Every KL divergence is KL(self || other) in nats, summed over the action's dimensions.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

NEVER = -1e9  # a logit; its exponential is 0 beside that of any other


@runtime_checkable
class Distribution(Protocol):
    """What the rest of the library asks of an action distribution; `*batch` are leading axes."""

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draws one action for each batch element, an array or a tree of arrays."""

    def mode(self) -> Any:
        """Returns the most probable action of each batch element."""

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Returns the log-probability (density) of each action, in nats."""

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns the (differential) entropy, in nats."""

    def kl(self, other: "Distribution") -> Float[Array, "*batch"]:
        """Returns KL(self || other), in nats, summed over action dimensions."""

    def fisher_product(self, tangent: "Distribution") -> "Distribution":
        """Returns M v for a tangent v of the distribution's parameters."""


class Categorical(NamedTuple):
    """One choice among A actions; actions are integers `[*batch]`.

    Attributes:
        logits: unnormalised log-probabilities, `[*batch, A]`.
    """

    logits: Float[Array, "*batch A"]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draws one action for each batch element."""
        return jax.random.categorical(key, self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        """Returns the most probable action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Returns the log-probability of each action."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns -sum_a p_a log p_a."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Returns sum_a p_a (log p_a - log q_a) with q the other distribution."""
        log_probs = jax.nn.log_softmax(self.logits)
        other_log_probs = jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - other_log_probs), axis=-1)

    def fisher_product(self, tangent: "Categorical") -> "Categorical":
        """Returns (diag(p) - p p^T) v, the Fisher matrix of a softmax in its logits."""
        probs = jax.nn.softmax(self.logits)
        weighted = probs * tangent.logits
        return Categorical(weighted - probs * jnp.sum(weighted, axis=-1, keepdims=True))


class DiagGaussian(NamedTuple):
    """A normal distribution with diagonal covariance; actions are real vectors `[*batch, D]`.

    Attributes:
        mean: `[*batch, D]`.
        log_std: logarithm of the standard deviations, `[*batch, D]`.
    """

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch D"]:
        """Draws one action for each batch element."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Float[Array, "*batch D"]:
        """Returns the mean."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Returns the log-density of each action."""
        standardized = (action - self.mean) * jnp.exp(-self.log_std)
        per_dimension = -0.5 * (standardized**2 + jnp.log(2 * jnp.pi)) - self.log_std
        return jnp.sum(per_dimension, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns sum_i log(sigma_i sqrt(2 pi e))."""
        return jnp.sum(self.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    def kl(self, other: "DiagGaussian") -> Float[Array, "*batch"]:
        """Returns sum_i [e^{2u} - 1 - 2u + (mu_i - mu'_i)^2 / sigma'_i^2] / 2.

        Here u = ln(sigma_i / sigma'_i), and the primes are the other distribution's. Written in
        differences: the textbook form cancels all but the last digits of a float32 when the two
        are as close as a trust region keeps them.
        """
        u = self.log_std - other.log_std
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * jnp.sum(jnp.expm1(2 * u) - 2 * u + shift**2, axis=-1)

    def fisher_product(self, tangent: "DiagGaussian") -> "DiagGaussian":
        """Returns (v_mean / sigma^2, 2 v_log_std): the two are orthogonal in the metric."""
        return DiagGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)


class Product(NamedTuple):
    """Independent parts, chosen together; an action is a tree like `factors`.

    Attributes:
        factors: a tree of dictionaries and tuples, whose leaves are distributions.
    """

    factors: Any

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draws one action for each batch element."""
        factors, structure = _parts(self)
        keys = jax.random.split(key, len(factors))
        return structure.unflatten(x.sample(k) for x, k in zip(factors, keys, strict=True))

    def mode(self) -> Any:
        """Returns the most probable action."""
        factors, structure = _parts(self)
        return structure.unflatten(factor.mode() for factor in factors)

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Returns the log-probability of each action: the sum over its parts."""
        factors, structure = _parts(self)
        pairs = zip(factors, structure.flatten_up_to(action), strict=True)
        return sum(factor.log_prob(part) for factor, part in pairs)

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns the sum of the factors' entropies."""
        return sum(factor.entropy() for factor in _parts(self)[0])

    def kl(self, other: "Product") -> Float[Array, "*batch"]:
        """Returns the sum of the factors' divergences."""
        pairs = zip(_parts(self)[0], _parts(other)[0], strict=True)
        return sum(factor.kl(other_factor) for factor, other_factor in pairs)

    def fisher_product(self, tangent: "Product") -> "Product":
        """Returns the product with the block-diagonal metric, one block a factor."""
        factors, structure = _parts(self)
        pairs = zip(factors, _parts(tangent)[0], strict=True)
        return Product(structure.unflatten(factor.fisher_product(v) for factor, v in pairs))


def _parts(product: Product) -> tuple[list[Distribution], Any]:
    return jax.tree.flatten(product.factors, is_leaf=lambda x: hasattr(x, "fisher_product"))


def mask_logits(
    logits: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]
) -> Float[Array, "*batch A"]:
    """Returns the logits of a `Categorical` that never chooses an action that is not legal.

    An illegal action has the logit `NEVER`, far below all others but finite. Its probability is
    exactly 0, so entropy, KL divergence and Fisher metric are those of the legal actions, and no
    derivative passes through it.

    Example:
        >>> Categorical(mask_logits(logits, observations["action_mask"]))
    """
    return jnp.where(legal, logits, jnp.asarray(NEVER, logits.dtype))
