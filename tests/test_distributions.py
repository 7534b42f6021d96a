import functools

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
    generator = np.random.default_rng(4)
    logits = 1.5 * generator.normal(size=(2, 5))
    vectors = 0.5 * generator.normal(size=(4, 3))
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


log_prob = jax.jit(lambda distribution, action: distribution.log_prob(action))
log_probs = jax.jit(jax.vmap(lambda distribution, action: distribution.log_prob(action), (None, 0)))
entropy = jax.jit(lambda distribution: distribution.entropy())
kl = jax.jit(lambda old, new: old.kl(new))
mode = jax.jit(lambda distribution: distribution.mode())
fisher_product = jax.jit(lambda distribution, tangent: distribution.fisher_product(tangent))


@functools.partial(jax.jit, static_argnums=1)
def draw(distribution, num):
    return jax.vmap(distribution.sample)(jax.random.split(jax.random.key(2), num))


@functools.cache
def drawn(kind):
    """Returns 400 000 actions of the old distribution."""
    return jax.tree.map(np.asarray, draw(pair(kind)[0], 400_000))


def first(num, actions):
    return jax.tree.map(lambda x: x[:num], actions)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_kl_are_the_means_over_samples_of_the_old_distribution(kind):
    old, new = pair(kind)
    actions = first(200_000, drawn(kind))
    log_old, log_new = np.asarray(log_probs(old, actions)), np.asarray(log_probs(new, actions))
    np.testing.assert_allclose(entropy(old), -log_old.mean(), rtol=0.01)
    np.testing.assert_allclose(kl(old, new), (log_old - log_new).mean(), rtol=0.03)
    # So the test notices a wrong direction.
    assert abs(float(kl(old, new)) - float(kl(new, old))) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_kl_and_its_gradient_are_zero_at_the_same_distribution(kind):
    old, _ = pair(kind)
    np.testing.assert_allclose(kl(old, old), 0, atol=1e-12)
    gradient = jax.jit(lambda old: jax.grad(old.kl)(old))(old)
    chex.assert_trees_all_close(gradient, jax.tree.map(np.zeros_like, old), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_matrix_is_the_hessian_of_the_kl_and_the_mean_outer_product_of_scores(kind):
    old, tangent = pair(kind)

    @jax.jit
    def products_and_scores(old, tangent, actions):
        flat, unravel = ravel_pytree(old)
        vector, _ = ravel_pytree(tangent)
        product, _ = ravel_pytree(old.fisher_product(tangent))
        hessian = jax.hessian(lambda x: old.kl(unravel(x)))(flat)
        scores = jax.vmap(jax.grad(lambda x, a: unravel(x).log_prob(a)), (None, 0))(flat, actions)
        return product, hessian @ vector, scores, vector

    product, with_hessian, scores, vector = map(
        np.asarray, products_and_scores(old, tangent, drawn(kind))
    )
    np.testing.assert_allclose(product, with_hessian, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(product, scores.T @ (scores @ vector) / len(scores), atol=0.05)


def test_densities_agree_with_scipy():
    gaussian, _ = pair("gaussian")
    action = np.array([0.3, -1.0, 2.0])
    expected = scipy.stats.norm(gaussian.mean, np.exp(gaussian.log_std))
    np.testing.assert_allclose(log_prob(gaussian, action), expected.logpdf(action).sum())
    np.testing.assert_allclose(entropy(gaussian), expected.entropy().sum())
    categorical, _ = pair("categorical")
    probs = np.exp(categorical.logits) / np.exp(categorical.logits).sum()
    np.testing.assert_allclose(log_prob(categorical, np.array(3)), np.log(probs[3]))
    np.testing.assert_allclose(entropy(categorical), scipy.stats.entropy(probs))


def test_gaussian_kl_equals_the_textbook_formula_and_is_positive_for_wider_distributions():
    old, new = pair("gaussian")
    old_var, new_var = np.exp(2 * old.log_std), np.exp(2 * new.log_std)
    textbook = (
        new.log_std - old.log_std + (old_var + (old.mean - new.mean) ** 2) / (2 * new_var) - 0.5
    )
    np.testing.assert_allclose(kl(old, new), textbook.sum(), rtol=1e-12)
    wider = old._replace(log_std=old.log_std + 0.5)
    narrower = old._replace(log_std=old.log_std - 0.5)
    assert kl(old, wider) > 0.1
    assert kl(old, narrower) > kl(old, wider)


@pytest.mark.parametrize("kind", ["gaussian", "product"])
def test_kl_is_the_sum_over_action_dimensions(kind):
    old, new = pair(kind)
    if kind == "gaussian":
        parts = [
            kl(
                DiagGaussian(old.mean[i : i + 1], old.log_std[i : i + 1]),
                DiagGaussian(new.mean[i : i + 1], new.log_std[i : i + 1]),
            )
            for i in range(3)
        ]
    else:
        parts = [kl(a, b) for a, b in zip(factors_of(old), factors_of(new), strict=True)]
    np.testing.assert_allclose(kl(old, new), sum(map(float, parts)), rtol=1e-12)


def test_a_small_kl_is_accurate_in_float32():
    old = DiagGaussian(np.full(3, 5.0), np.full(3, 0.7))
    new = DiagGaussian(old.mean + 1e-4, old.log_std + 1e-4)
    single = [jax.tree.map(lambda x: x.astype(np.float32), d) for d in (old, new)]
    rounded = [jax.tree.map(lambda x: x.astype(np.float64), d) for d in single]
    np.testing.assert_allclose(kl(*single), kl(*rounded), rtol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_mode_maximises_the_density(kind):
    distribution, _ = pair(kind)
    best = float(log_prob(distribution, mode(distribution)))
    actions = first(1000, drawn(kind))
    assert (np.asarray(log_probs(distribution, actions)) <= best + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
def test_methods_work_with_batch_axes(kind):
    old, new = pair(kind)
    batch_old, batch_new = (
        jax.tree.map(lambda x: np.broadcast_to(x, (2, 3, *x.shape)), d) for d in (old, new)
    )

    @jax.jit
    def methods(old, new, key):
        actions = old.sample(key)
        return actions, old.log_prob(actions), old.entropy(), old.kl(new)

    actions, *numbers, kls = methods(batch_old, batch_new, jax.random.key(0))
    assert all(x.shape[:2] == (2, 3) for x in jax.tree.leaves(actions))
    chex.assert_shape(numbers, (2, 3))
    np.testing.assert_allclose(kls, np.full((2, 3), kl(old, new)))


# --- products


def test_numbers_of_a_product_are_sums_over_its_factors():
    (old, new), (tangent, _) = pair("product"), pair("product")
    action = {"turn": (np.array(1), np.array(2)), "push": np.array([0.3, -1.0, 2.0])}
    parts, factors = (*action["turn"], action["push"]), factors_of(old)
    sums = lambda numbers: sum(map(float, numbers))
    of_factors = sums(log_prob(x, part) for x, part in zip(factors, parts, strict=True))
    np.testing.assert_allclose(log_prob(old, action), of_factors, rtol=1e-12)
    np.testing.assert_allclose(entropy(old), sums(map(entropy, factors)), rtol=1e-12)
    of_factors = sums(kl(x, y) for x, y in zip(factors, factors_of(new), strict=True))
    np.testing.assert_allclose(kl(old, new), of_factors, rtol=1e-12)
    products = [fisher_product(x, v) for x, v in zip(factors, factors_of(tangent), strict=True)]
    product = fisher_product(old, tangent)
    chex.assert_trees_all_close(factors_of(product), products, rtol=1e-12)
    chex.assert_trees_all_equal_structs(product, old)
    chex.assert_trees_all_equal(mode(old)["turn"], tuple(map(mode, factors[:2])))


def test_the_factors_of_a_product_are_drawn_independently():
    same = Categorical(np.zeros(2))
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


def logits_of_five(dtype=np.float64):
    """Returns two rows of logits. Without a mask, illegal actions would be the most probable."""
    logits = np.random.default_rng(0).normal(size=(2, 5)) + 20.0 * ~LEGAL
    return logits.astype(dtype)


def test_a_masked_distribution_equals_the_distribution_over_the_legal_actions():
    logits, vector = logits_of_five(), np.random.default_rng(1).normal(size=5)
    old, new = jax.jit(masked)(logits[0]), jax.jit(masked)(logits[1])
    small_old, small_new = (Categorical(x[LEGAL]) for x in logits)
    for action in np.flatnonzero(LEGAL):
        expected = log_prob(small_old, NUMBER[action])
        np.testing.assert_allclose(log_prob(old, action), expected, rtol=1e-12)
    np.testing.assert_allclose(entropy(old), entropy(small_old), rtol=1e-12)
    np.testing.assert_allclose(kl(old, new), kl(small_old, small_new), rtol=1e-12)
    assert LEGAL[mode(old)]
    assert NUMBER[mode(old)] == mode(small_old)

    @jax.jit
    def fisher_product_in_logits(logits, vector):
        """As in a product with the Fisher matrix of a policy: from a tangent and back."""
        old, tangent = jax.jvp(masked, (logits,), (vector,))
        _, pull_back = jax.vjp(masked, logits)
        return pull_back(old.fisher_product(tangent))[0]

    product = np.asarray(fisher_product_in_logits(logits[0], vector))
    small = fisher_product(small_old, Categorical(vector[LEGAL])).logits
    np.testing.assert_allclose(product[LEGAL], small, rtol=1e-12)
    assert (product[~LEGAL] == 0).all()


@functools.partial(jax.jit, static_argnums=0)
def derivatives(name, legal, logits, other):
    function = OF_LOGITS[name](legal, other)
    return *jax.value_and_grad(function)(logits), jax.hessian(function)(logits)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("legal", [LEGAL, np.arange(5) == 3], ids=["three", "one"])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_nothing_depends_on_the_logit_of_an_illegal_action(name, legal, dtype):
    value, gradient, hessian = map(np.asarray, derivatives(name, legal, *logits_of_five(dtype)))
    assert all(x.dtype == dtype and np.isfinite(x).all() for x in (value, gradient, hessian))
    assert (gradient[~legal] == 0).all()
    assert (hessian[~legal] == 0).all()
    if legal.sum() == 1:
        assert value == 0
        assert not gradient.any()
        assert not hessian.any()
    else:
        assert np.abs(gradient[legal]).min() > 1e-3


def test_an_illegal_action_is_never_drawn():
    @jax.jit
    def actions_and_probs(logits, key):
        actions = masked(jnp.broadcast_to(logits, (10**6, 5))).sample(key)
        return actions, jax.nn.softmax(masked(logits).logits)

    row = logits_of_five(np.float32)[0]
    actions, probs = map(np.asarray, actions_and_probs(row, jax.random.key(0)))
    assert (probs[~LEGAL] == 0).all()
    shares = np.bincount(actions, minlength=5) / 10**6
    assert (shares[~LEGAL] == 0).all()
    np.testing.assert_allclose(shares, probs, atol=2e-3)
