"""Action distributions: sampling, log-probability, entropy, KL divergence and Fisher metric.

A distribution is a NamedTuple of its own parameters, so it is a pytree: the Jacobian-vector
product of `params -> distribution` is again a record of the same type, holding the tangent of
each parameter. `fisher_product` maps such a tangent v to M v, where M is the Fisher information
matrix in the distribution's own parameters. The Fisher matrix in network parameters is then
F = E[J^T M J] with J the network's Jacobian (Schulman et al. 2015, arXiv:1502.05477, appendix C),
which `trpo_jax.fisher` computes without knowing which distribution it holds.

Every KL divergence is KL(self || other) in nats, summed over the action's dimensions.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray


@runtime_checkable
class Distribution(Protocol):
    """What the rest of the library asks of an action distribution; `*batch` are leading axes."""

    def sample(self, key: PRNGKeyArray) -> Num[Array, "..."]:
        """Draws one action for each batch element."""

    def mode(self) -> Num[Array, "..."]:
        """Returns the most probable action of each batch element."""

    def log_prob(self, action: Num[Array, "..."]) -> Float[Array, "*batch"]:
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


class MultiCategorical(NamedTuple):
    """K independent choices; actions are integer vectors `[*batch, K]`.

    Attributes:
        factors: one `Categorical` for each choice; they may differ in their number of actions.
    """

    factors: tuple[Categorical, ...]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch K"]:
        """Draws one action vector for each batch element."""
        keys = jax.random.split(key, len(self.factors))
        draws = [factor.sample(k) for factor, k in zip(self.factors, keys, strict=True)]
        return jnp.stack(draws, axis=-1)

    def mode(self) -> Int[Array, "*batch K"]:
        """Returns the most probable action vector."""
        return jnp.stack([factor.mode() for factor in self.factors], axis=-1)

    def log_prob(self, action: Int[Array, "*batch K"]) -> Float[Array, "*batch"]:
        """Returns the log-probability of each action vector."""
        return sum(factor.log_prob(action[..., k]) for k, factor in enumerate(self.factors))

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns the sum of the factors' entropies."""
        return sum(factor.entropy() for factor in self.factors)

    def kl(self, other: "MultiCategorical") -> Float[Array, "*batch"]:
        """Returns the sum of the factors' divergences."""
        pairs = zip(self.factors, other.factors, strict=True)
        return sum(factor.kl(other_factor) for factor, other_factor in pairs)

    def fisher_product(self, tangent: "MultiCategorical") -> "MultiCategorical":
        """Returns the product with the block-diagonal metric, one block a factor."""
        pairs = zip(self.factors, tangent.factors, strict=True)
        return MultiCategorical(tuple(factor.fisher_product(v) for factor, v in pairs))
