import agents
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.distributions import Categorical


@pytest.mark.usefixtures("x64")
def test_the_other_divergence_has_the_metric_that_it_says():
    logits, v = jax.random.normal(jax.random.key(0), (2, 5), float)
    here = agents.RatioDivergence(logits)
    divergence = lambda x: here.kl(agents.RatioDivergence(x))
    np.testing.assert_allclose(divergence(logits + 3.0), 0, atol=1e-12)
    log_ratio = jax.nn.log_softmax(logits + v) - jax.nn.log_softmax(logits)
    np.testing.assert_allclose(divergence(logits + v), jnp.sum(jnp.exp(log_ratio) - 1 - log_ratio))
    product = here.fisher_product(agents.RatioDivergence(v)).logits
    np.testing.assert_allclose(product, jax.hessian(divergence)(logits) @ v, rtol=1e-6)
    assert not np.allclose(product, Categorical(logits).fisher_product(Categorical(v)).logits)


@pytest.mark.slow
def test_the_return_of_the_game_is_followed_exactly():
    options = agents.build_parser().parse_args(
        ["game", "--seeds", "3", "--num-updates", "2", "--num-envs", "16"]
    )
    *_, row = agents.game(options)
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells[0] == "3"
    assert len(cells) == 7
    assert -30 < float(cells[2]) < 11
