import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from trpo_jax.distributions import Categorical, DiagGaussian, Product, mask_logits

pytestmark = pytest.mark.usefixtures("x64")

KINDS = ("categorical", "gaussian", "product")


def pair(kind):
    """Returns an old and a new distribution over one action, without batch axes."""
    logits = 1.5 * jax.random.normal(jax.random.key(0), (2, 5))
    vectors = jax.random.normal(jax.random.key(1), (4, 3)) * 0.5
    return {
        "categorical": (Categorical(logits[0]), Categorical(logits[1])),
        "gaussian": (DiagGaussian(vectors[0], vectors[1]), DiagGaussian(vectors[2], vectors[3])),
        "product": tuple(
            Product({"turn": (Categorical(x[:2]), Categorical(x[2:])), "push": DiagGaussian(*y)})
            for x, y in zip(logits, vectors.reshape(2, 2, 3), strict=True)
        ),
    }[kind]


def factors_of(product):
    return [*product.factors["turn"], product.factors["push"]]


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
    assert abs(float(old.kl(new) - new.kl(old))) > 0.05  # so the test notices a wrong direction


@pytest.mark.parametrize("kind", KINDS)
def test_kl_and_its_gradient_are_zero_at_the_same_distribution(kind):
    old, _ = pair(kind)
    np.testing.assert_allclose(old.kl(old), 0, atol=1e-12)
    chex.assert_trees_all_close(jax.grad(old.kl)(old), jax.tree.map(jnp.zeros_like, old), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_matrix_is_the_hessian_of_the_kl_and_the_mean_outer_product_of_scores(kind):
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


def test_gaussian_kl_equals_the_textbook_formula_and_is_positive_for_wider_distributions():
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


@pytest.mark.parametrize("kind", ["gaussian", "product"])
def test_kl_is_the_sum_over_action_dimensions(kind):
    old, new = pair(kind)
    if kind == "gaussian":
        parts = [
            DiagGaussian(old.mean[i : i + 1], old.log_std[i : i + 1]).kl(
                DiagGaussian(new.mean[i : i + 1], new.log_std[i : i + 1])
            )
            for i in range(3)
        ]
    else:
        parts = [a.kl(b) for a, b in zip(factors_of(old), factors_of(new), strict=True)]
    np.testing.assert_allclose(old.kl(new), sum(parts), rtol=1e-12)


def test_a_small_kl_is_accurate_in_float32():
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
def test_methods_work_with_batch_axes(kind):
    old, new = pair(kind)
    batch_old, batch_new = (
        jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 3, *x.shape)), d) for d in (old, new)
    )
    actions = batch_old.sample(jax.random.key(0))
    assert all(x.shape[:2] == (2, 3) for x in jax.tree.leaves(actions))
    chex.assert_shape([batch_old.log_prob(actions), batch_old.entropy()], (2, 3))
    np.testing.assert_allclose(batch_old.kl(batch_new), jnp.full((2, 3), old.kl(new)))


# --- products


def test_numbers_of_a_product_are_sums_over_its_factors():
    (old, new), (tangent, _) = pair("product"), pair("product")
    action = {"turn": (jnp.array(1), jnp.array(2)), "push": jnp.array([0.3, -1.0, 2.0])}
    parts, factors = (*action["turn"], action["push"]), factors_of(old)
    log_probs = [x.log_prob(part) for x, part in zip(factors, parts, strict=True)]
    np.testing.assert_allclose(old.log_prob(action), sum(log_probs), rtol=1e-12)
    np.testing.assert_allclose(old.entropy(), sum(x.entropy() for x in factors), rtol=1e-12)
    kls = [x.kl(y) for x, y in zip(factors, factors_of(new), strict=True)]
    np.testing.assert_allclose(old.kl(new), sum(kls), rtol=1e-12)
    products = [x.fisher_product(v) for x, v in zip(factors, factors_of(tangent), strict=True)]
    chex.assert_trees_all_close(factors_of(old.fisher_product(tangent)), products, rtol=1e-12)
    chex.assert_trees_all_equal_structs(old.fisher_product(tangent), old)
    chex.assert_trees_all_equal(old.mode()["turn"], tuple(x.mode() for x in factors[:2]))


def test_the_factors_of_a_product_are_drawn_independently():
    same = Categorical(jnp.zeros(2))
    actions = draw(Product({"a": same, "b": (same, same)}), 20_000)
    columns = np.stack(jax.tree.leaves(actions)).astype(float)
    assert np.abs(np.corrcoef(columns) - np.eye(3)).max() < 0.03


# --- illegal actions

LEGAL = np.array([True, False, True, True, False])
NUMBER = np.cumsum(LEGAL) - 1  # index of each legal action among the legal actions
OF_LOGITS = {  # functions of the logits of a masked distribution, given other logits
    "log_prob": lambda legal, other: lambda x: masked(x, legal).log_prob(jnp.argmax(legal)),
    "entropy": lambda legal, other: lambda x: masked(x, legal).entropy(),
    "kl": lambda legal, other: lambda x: masked(x, legal).kl(masked(other, legal)),
    "kl_of_the_other": lambda legal, other: lambda x: masked(other, legal).kl(masked(x, legal)),
}


def masked(logits, legal=LEGAL):
    return Categorical(mask_logits(logits, jnp.broadcast_to(legal, logits.shape)))


def logits_of_five(dtype=jnp.float64):
    """Returns two rows of logits. Without a mask, illegal actions would be the most probable."""
    logits = jax.random.normal(jax.random.key(0), (2, 5)) + 20.0 * ~LEGAL
    return logits.astype(dtype)


def test_a_masked_distribution_equals_the_distribution_over_the_legal_actions():
    logits = logits_of_five()
    old, new = masked(logits[0]), masked(logits[1])
    small_old, small_new = (Categorical(x[LEGAL]) for x in logits)
    for action in np.flatnonzero(LEGAL):
        expected = small_old.log_prob(jnp.asarray(NUMBER[action]))
        np.testing.assert_allclose(old.log_prob(jnp.asarray(action)), expected, rtol=1e-12)
    np.testing.assert_allclose(old.entropy(), small_old.entropy(), rtol=1e-12)
    np.testing.assert_allclose(old.kl(new), small_old.kl(small_new), rtol=1e-12)
    assert LEGAL[old.mode()]
    assert NUMBER[old.mode()] == small_old.mode()
    # As in a product with the Fisher matrix of a policy: from a tangent of the logits and back.
    vector = jax.random.normal(jax.random.key(1), (5,))
    _, tangent = jax.jvp(masked, (logits[0],), (vector,))
    _, pull_back = jax.vjp(masked, logits[0])
    (product,) = pull_back(old.fisher_product(tangent))
    small = small_old.fisher_product(Categorical(vector[LEGAL])).logits
    np.testing.assert_allclose(product[LEGAL], small, rtol=1e-12)
    assert (product[~LEGAL] == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("legal", [LEGAL, np.arange(5) == 3], ids=["three", "one"])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_nothing_depends_on_the_logit_of_an_illegal_action(name, legal, dtype):
    logits, other = logits_of_five(dtype)
    function = OF_LOGITS[name](legal, other)
    value, gradient = jax.value_and_grad(function)(logits)
    hessian = jax.hessian(function)(logits)
    assert all(x.dtype == dtype and np.isfinite(x).all() for x in (value, gradient, hessian))
    assert (gradient[~legal] == 0).all()
    assert (hessian[~legal] == 0).all()
    if legal.sum() == 1:
        assert value == 0
        assert not gradient.any()
        assert not hessian.any()
    else:
        assert jnp.abs(gradient[legal]).min() > 1e-3


def test_an_illegal_action_is_never_drawn():
    logits = jnp.broadcast_to(logits_of_five(jnp.float32)[0], (10**6, 5))
    actions = jax.jit(lambda key: masked(logits).sample(key))(jax.random.key(0))
    probs = jax.nn.softmax(masked(logits[0]).logits)
    assert (probs[~LEGAL] == 0).all()
    shares = np.bincount(actions, minlength=5) / 10**6
    assert (shares[~LEGAL] == 0).all()
    np.testing.assert_allclose(shares, probs, atol=2e-3)
