import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from trpo_jax.distributions import Categorical, DiagGaussian, MultiCategorical

pytestmark = pytest.mark.usefixtures("x64")

KINDS = ("categorical", "gaussian", "multi_categorical")


def pair(kind):
    """Returns an old and a new distribution over one action, without batch axes."""
    logits = 1.5 * jax.random.normal(jax.random.key(0), (2, 5))
    vectors = jax.random.normal(jax.random.key(1), (4, 3)) * 0.5
    return {
        "categorical": (Categorical(logits[0]), Categorical(logits[1])),
        "gaussian": (DiagGaussian(vectors[0], vectors[1]), DiagGaussian(vectors[2], vectors[3])),
        "multi_categorical": tuple(
            MultiCategorical((Categorical(x[:2]), Categorical(x[2:]))) for x in logits
        ),
    }[kind]


def draw(distribution, num):
    return jax.vmap(distribution.sample)(jax.random.split(jax.random.key(2), num))


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_kl_are_the_means_over_samples_of_the_old_distribution(kind):
    old, new = pair(kind)
    actions = draw(old, 200_000)
    log_old = jax.vmap(old.log_prob)(actions)
    log_new = jax.vmap(new.log_prob)(actions)
    np.testing.assert_allclose(old.entropy(), -log_old.mean(), rtol=0.01)
    np.testing.assert_allclose(old.kl(new), (log_old - log_new).mean(), rtol=0.03)
    assert abs(float(old.kl(new) - new.kl(old))) > 0.05  # the direction can be told apart


@pytest.mark.parametrize("kind", KINDS)
def test_kl_is_zero_with_zero_gradient_at_the_same_distribution(kind):
    old, _ = pair(kind)
    np.testing.assert_allclose(old.kl(old), 0, atol=1e-12)
    chex.assert_trees_all_close(jax.grad(old.kl)(old), jax.tree.map(jnp.zeros_like, old), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_product_is_the_hessian_of_the_kl_and_the_mean_score_outer_product(kind):
    old, tangent = pair(kind)
    flat, unravel = ravel_pytree(old)
    vector, _ = ravel_pytree(tangent)
    product, _ = ravel_pytree(old.fisher_product(tangent))
    hessian = jax.hessian(lambda x: old.kl(unravel(x)))(flat)
    np.testing.assert_allclose(product, hessian @ vector, rtol=1e-6, atol=1e-9)
    scores = jax.vmap(jax.grad(lambda x, a: unravel(x).log_prob(a)), (None, 0))(
        flat, draw(old, 400_000)
    )
    np.testing.assert_allclose(product, scores.T @ (scores @ vector) / len(scores), atol=0.05)


def test_densities_agree_with_scipy():
    gaussian, _ = pair("gaussian")
    action = jnp.array([0.3, -1.0, 2.0])
    expected = scipy.stats.norm(gaussian.mean, np.exp(gaussian.log_std))
    np.testing.assert_allclose(gaussian.log_prob(action), expected.logpdf(action).sum())
    np.testing.assert_allclose(gaussian.entropy(), expected.entropy().sum())
    categorical, _ = pair("categorical")
    probs = np.exp(categorical.logits) / np.exp(categorical.logits).sum()
    np.testing.assert_allclose(categorical.log_prob(jnp.array(3)), np.log(probs[3]))
    np.testing.assert_allclose(categorical.entropy(), scipy.stats.entropy(probs))


def test_gaussian_kl_is_the_textbook_formula_and_positive_when_the_deviation_grows():
    old, new = pair("gaussian")
    old_var, new_var = jnp.exp(2 * old.log_std), jnp.exp(2 * new.log_std)
    textbook = (
        new.log_std - old.log_std + (old_var + (old.mean - new.mean) ** 2) / (2 * new_var) - 0.5
    )
    np.testing.assert_allclose(old.kl(new), textbook.sum(), rtol=1e-12)
    wider = old._replace(log_std=old.log_std + 0.5)
    narrower = old._replace(log_std=old.log_std - 0.5)
    assert old.kl(wider) > 0.1
    assert old.kl(narrower) > old.kl(wider)


@pytest.mark.parametrize("kind", ["gaussian", "multi_categorical"])
def test_kl_is_summed_not_averaged_over_action_dimensions(kind):
    old, new = pair(kind)
    if kind == "gaussian":
        parts = [
            DiagGaussian(old.mean[i : i + 1], old.log_std[i : i + 1]).kl(
                DiagGaussian(new.mean[i : i + 1], new.log_std[i : i + 1])
            )
            for i in range(3)
        ]
    else:
        parts = [a.kl(b) for a, b in zip(old.factors, new.factors, strict=True)]
    np.testing.assert_allclose(old.kl(new), sum(parts), rtol=1e-12)


def test_small_kl_keeps_its_digits_in_float32():
    old = DiagGaussian(jnp.full(3, 5.0), jnp.full(3, 0.7))
    new = DiagGaussian(old.mean + 1e-4, old.log_std + 1e-4)
    single = [jax.tree.map(lambda x: x.astype(jnp.float32), d) for d in (old, new)]
    rounded = [jax.tree.map(lambda x: x.astype(jnp.float64), d) for d in single]
    np.testing.assert_allclose(single[0].kl(single[1]), rounded[0].kl(rounded[1]), rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_maximises_the_density(kind):
    distribution, _ = pair(kind)
    best = distribution.log_prob(distribution.mode())
    assert (jax.vmap(distribution.log_prob)(draw(distribution, 1000)) <= best + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_batch_axes_go_through(kind):
    old, new = pair(kind)
    batch_old, batch_new = (
        jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 3, *x.shape)), d) for d in (old, new)
    )
    actions = batch_old.sample(jax.random.key(0))
    assert actions.shape[:2] == (2, 3)
    chex.assert_shape([batch_old.log_prob(actions), batch_old.entropy()], (2, 3))
    np.testing.assert_allclose(batch_old.kl(batch_new), jnp.full((2, 3), old.kl(new)))
