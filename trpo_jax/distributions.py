"""Action distributions: sampling, log-probability, entropy, KL divergence and Fisher metric.

A distribution is a NamedTuple of its own parameters, so it is a pytree. The Jacobian-vector product
of `params -> distribution` is a record of the same type that holds the tangent of each parameter.
`fisher_product` maps such a tangent v to M v. M is the Fisher information matrix in the
distribution's own parameters. The Fisher matrix in the parameters of the network is F = E[J^T M J],
with J the Jacobian of the network (Schulman et al. 2015, arXiv:1502.05477, appendix C).
`trpo_jax.fisher` computes products with F for every distribution that has these methods.

Every KL divergence is KL(self || other) in nats, summed over the dimensions of the action.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

NEVER = -1e9  # the logit of an illegal action; a softmax gives it the probability 0


@runtime_checkable
class Distribution(Protocol):
    """The methods that the library needs of an action distribution. `*batch` are leading axes."""

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draws one action for each batch element: an array or a tree of arrays."""

    def mode(self) -> Any:
        """Returns the most probable action of each batch element."""

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Returns the log-probability (density) of each action, in nats."""

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns the entropy in nats: the differential entropy if actions are continuous."""

    def kl(self, other: "Distribution") -> Float[Array, "*batch"]:
        """Returns KL(self || other) in nats, summed over the dimensions of the action."""

    def fisher_product(self, tangent: "Distribution") -> "Distribution":
        """Returns M v for a tangent v of the distribution's parameters."""


class Categorical(NamedTuple):
    """One choice among A actions. Actions are integers `[*batch]`.

    Attributes:
        logits: unnormalised log-probabilities, `[*batch, A]`.

    Examples:
        >>> policy = trpo_jax.Categorical(logits=jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]])))
        >>> policy.sample(jax.random.key(0)).shape
        (2,)
        >>> policy.mode()
        Array([0, 0], dtype=int32)
        >>> print(jnp.array_str(policy.log_prob(jnp.array([0, 1])), precision=2))
        [-0.69 -2.3 ]
        >>> print(jnp.array_str(policy.entropy(), precision=2))
        [0.69 0.33]
    """

    logits: Float[Array, "*batch A"]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """Draws one action for each batch element."""
        return jax.random.categorical(key, self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        """Returns the most probable action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Returns the log-probability of each action, in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns -sum_a p_a log p_a, in nats."""
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """Returns sum_a p_a (log p_a - log q_a), in nats. q are the probabilities of `other`."""
        log_probs = jax.nn.log_softmax(self.logits)
        other_log_probs = jax.nn.log_softmax(other.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - other_log_probs), axis=-1)

    def fisher_product(self, tangent: "Categorical") -> "Categorical":
        """Returns (diag(p) - p p^T) v, with the Fisher matrix of a softmax in its logits."""
        probs = jax.nn.softmax(self.logits)
        weighted = probs * tangent.logits
        return Categorical(weighted - probs * jnp.sum(weighted, axis=-1, keepdims=True))


class DiagGaussian(NamedTuple):
    """A normal distribution with diagonal covariance. Actions are real vectors `[*batch, D]`.

    Attributes:
        mean: `[*batch, D]`.
        log_std: natural logarithm of the standard deviations, `[*batch, D]`.

    Examples:
        >>> old = trpo_jax.DiagGaussian(mean=jnp.zeros((1, 2)), log_std=jnp.zeros((1, 2)))
        >>> new = old._replace(mean=jnp.array([[0.1, 0.2]]))
        >>> old.sample(jax.random.key(0)).shape
        (1, 2)
        >>> print(jnp.array_str(old.log_prob(jnp.zeros((1, 2))), precision=3))
        [-1.838]
        >>> print(jnp.array_str(old.kl(new), precision=3))
        [0.025]
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
        """Returns the log-density of each action, in nats."""
        standardized = (action - self.mean) * jnp.exp(-self.log_std)
        per_dimension = -0.5 * (standardized**2 + jnp.log(2 * jnp.pi)) - self.log_std
        return jnp.sum(per_dimension, axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns sum_i log(sigma_i sqrt(2 pi e)), the differential entropy in nats."""
        return jnp.sum(self.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)

    def kl(self, other: "DiagGaussian") -> Float[Array, "*batch"]:
        """Returns sum_i [e^{2u} - 1 - 2u + (mu_i - mu'_i)^2 / sigma'_i^2] / 2, in nats.

        Here u = ln(sigma_i / sigma'_i). The numbers mu' and sigma' belong to `other`. A trust
        region keeps the two distributions so close to each other that the textbook formula would
        lose most digits of a float32. This formula keeps them, because it uses differences.
        """
        u = self.log_std - other.log_std
        shift = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return 0.5 * jnp.sum(jnp.expm1(2 * u) - 2 * u + shift**2, axis=-1)

    def fisher_product(self, tangent: "DiagGaussian") -> "DiagGaussian":
        """Returns (v_mean / sigma^2, 2 v_log_std). The Fisher matrix is diagonal."""
        return DiagGaussian(tangent.mean * jnp.exp(-2 * self.log_std), 2 * tangent.log_std)


class Product(NamedTuple):
    """Independent parts of one action. The action is a tree like `factors`.

    Attributes:
        factors: a tree of dictionaries and tuples. Its leaves are distributions.

    Examples:
        >>> turn = trpo_jax.Categorical(jnp.zeros((4, 3)))
        >>> push = trpo_jax.DiagGaussian(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
        >>> policy = trpo_jax.Product({"turn": turn, "push": push})
        >>> action = policy.sample(jax.random.key(0))
        >>> action["turn"].shape, action["push"].shape
        ((4,), (4, 2))
        >>> policy.log_prob(action).shape
        (4,)
    """

    factors: Any

    def sample(self, key: PRNGKeyArray) -> Any:
        """Draws one action for each batch element."""
        factors, structure = _parts(self)
        keys = jax.random.split(key, len(factors))
        return structure.unflatten(x.sample(k) for x, k in zip(factors, keys, strict=True))

    def mode(self) -> Any:
        """Returns the most probable action of each batch element."""
        factors, structure = _parts(self)
        return structure.unflatten(factor.mode() for factor in factors)

    def log_prob(self, action: Any) -> Float[Array, "*batch"]:
        """Returns the log-probability of each action: the sum over its parts, in nats."""
        factors, structure = _parts(self)
        pairs = zip(factors, structure.flatten_up_to(action), strict=True)
        return sum(factor.log_prob(part) for factor, part in pairs)

    def entropy(self) -> Float[Array, "*batch"]:
        """Returns the sum of the entropies of the factors, in nats."""
        return sum(factor.entropy() for factor in _parts(self)[0])

    def kl(self, other: "Product") -> Float[Array, "*batch"]:
        """Returns the sum of the KL divergences of the factors, in nats."""
        pairs = zip(_parts(self)[0], _parts(other)[0], strict=True)
        return sum(factor.kl(other_factor) for factor, other_factor in pairs)

    def fisher_product(self, tangent: "Product") -> "Product":
        """Returns M v. M is block-diagonal, with one block for each factor."""
        factors, structure = _parts(self)
        pairs = zip(factors, _parts(tangent)[0], strict=True)
        return Product(structure.unflatten(factor.fisher_product(v) for factor, v in pairs))


def _parts(product: Product) -> tuple[list[Distribution], Any]:
    return jax.tree.flatten(product.factors, is_leaf=lambda x: hasattr(x, "fisher_product"))


def mask_logits(
    logits: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"]
) -> Float[Array, "*batch A"]:
    """Returns logits with which a `Categorical` never chooses an illegal action.

    An illegal action gets the logit `NEVER`, which is finite but far below all other logits. Its
    probability is exactly 0. So the entropy, the KL divergence and the Fisher metric are those of a
    distribution over the legal actions only. No derivative passes through an illegal action.

    Args:
        logits: unnormalised log-probabilities, `[*batch, A]`.
        legal: whether each action is legal. At least one action in each row has to be legal.

    Examples:
        >>> logits = jnp.array([0.0, 5.0, 0.0])
        >>> legal = jnp.array([True, False, True])
        >>> policy = trpo_jax.Categorical(trpo_jax.mask_logits(logits, legal))
        >>> print(jax.nn.softmax(policy.logits))
        [0.5 0.  0.5]
    """
    return jnp.where(legal, logits, jnp.asarray(NEVER, logits.dtype))
