import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import constant_value

from trpo_jax import algorithms
from trpo_jax.algorithms import trpo
from trpo_jax.errors import ConfigurationError

ENV = constant_value()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_kl", 0.0),
        ("max_kl", -1.0),
        ("max_kl", math.nan),
        ("max_kl", math.inf),
        ("max_kl", "0.01"),
        ("max_kl", None),
        ("max_kl", True),
        ("max_kl", np.array([0.01, -0.01])),
        ("damping", -0.1),
        ("gae_lambda", 1.1),
        ("gae_lambda", -0.1),
        ("gamma", 1.0001),
        ("num_envs", 0),
        ("num_envs", 2.0),
        ("num_envs", True),
        ("num_steps", 0),
        ("cg_iters", 0),
        ("fisher_subsample", 0),
        ("line_search_shrink", 0.0),
        ("line_search_shrink", 1.0),
        ("critic_lr", -1e-3),
        ("critic_minibatches", 0),
        ("hidden_sizes", (64, 0)),
        ("hidden_sizes", 64),
        ("hidden_sizes", (64, 2.5)),
        ("activation", "sigmoidal"),
        ("normalize_observations", 1),
        ("log_std_init", math.nan),
        ("exploration", "pink"),
        ("ou_rho", 1.0),
        ("ou_rho", -0.1),
        ("color_beta", 2.1),
        ("gae_critic", "ridge"),
        ("critic_max_change", 0.0),
    ],
)
def test_a_value_that_cannot_work_is_named(field, value):
    with pytest.raises(ConfigurationError, match=field) as caught:
        trpo.make(ENV, trpo.Config(**{field: value}))
    assert "must be" in str(caught.value)


def test_minibatches_must_divide_the_batch():
    with pytest.raises(ConfigurationError, match=r"critic_minibatches = 7 does not divide .* 2048"):
        trpo.make(ENV, trpo.Config(critic_minibatches=7))


def test_the_fisher_stride_cannot_skip_everything():
    with pytest.raises(ConfigurationError, match="fisher_subsample"):
        trpo.make(ENV, trpo.Config(num_steps=16, fisher_subsample=17))


def test_numbers_of_other_kinds_are_fine():
    for value in (1, np.float32(0.5), jnp.float32(0.5), np.array(0.5), np.array([0.1, 0.2])):
        assert trpo.make(ENV, trpo.Config(max_kl=value)).steps_per_update == 2048
    assert trpo.make(ENV, trpo.Config(num_envs=np.int64(4))).steps_per_update == 1024


def test_real_fields_are_leaves_and_the_others_static():
    leaves = jax.tree.leaves(trpo.Config())
    assert len(leaves) == 12
    assert all(isinstance(leaf, float) for leaf in leaves)


def test_an_unknown_algorithm_is_answered_with_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean trpo"):
        algorithms.get("tpro")
