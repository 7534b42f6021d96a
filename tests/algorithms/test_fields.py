import dataclasses
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from probes import constant_value

from trpo_jax import algorithms
from trpo_jax.agent import CRITICS, EXPLORATIONS, NO_MEMORY
from trpo_jax.algorithms import configs, fields, ppo, trpo, trpo_lag
from trpo_jax.control_variates import CONTROL_WEIGHTS
from trpo_jax.envs.native import toll_road
from trpo_jax.errors import ConfigurationError
from trpo_jax.networks import ACTIVATIONS, LOG_STD_BOUNDS
from trpo_jax.recurrent import CELLS

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
        ("log_std_init", 10.5),
        ("num_steps", 2**31),
        ("hidden_sizes", (2**40,)),
        ("exploration", "pink"),
        ("ou_rho", 1.0),
        ("ou_rho", -0.1),
        ("color_beta", 2.1),
        ("gae_critic", "ridge"),
        ("critic_max_change", 0.0),
    ],
)
def test_the_error_names_a_value_that_cannot_work(field, value):
    with pytest.raises(ConfigurationError, match=field) as caught:
        trpo.make(ENV, trpo.Config(**{field: value}))
    assert "must be" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "held"),
    [
        ("max_kl", 1e39, "inf"),
        ("damping", 1e39, "inf"),
        ("damping", np.float64(1e-46), "0"),
        ("damping", 1e-40, "0"),
        ("entropy_coef", 1e-39, "0"),
        ("ou_rho", 0.9999999999, "1"),
        ("gamma", 0.9999999999, "1"),
        ("line_search_shrink", np.array([0.5, 0.99999999999]), "1"),
    ],
)
def test_a_number_that_32_bits_do_not_hold_is_refused(field, value, held):
    with pytest.raises(ConfigurationError, match=rf"{field} = .* would become {held}"):
        trpo.make(ENV, trpo.Config(**{field: value}))


@pytest.mark.parametrize("name", ["ua_trpo", "trpo_held_out"])
def test_the_error_names_a_wrong_value_of_alpha(name):
    module = algorithms.get(name)
    with pytest.raises(ConfigurationError, match=r"alpha = 1e-46 .* would become 0"):
        module.make(ENV, module.Config(alpha=1e-46))


def test_a_radius_below_the_rounding_of_a_kl_divergence_is_refused():
    with pytest.raises(ConfigurationError, match="max_kl = 1e-12 is less than the rounding"):
        trpo.make(ENV, trpo.Config(max_kl=1e-12))
    trpo.make(ENV, trpo.Config(max_kl=2e-7))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("trpo", {"num_envs": 1, "num_steps": 1}, "is a single step"),
        ("vpg", {"num_envs": 1, "num_steps": 1}, "is a single step"),
        ("ppo", {"policy_minibatches": 2048}, "puts a single step into each"),
        ("trpo", {"num_envs": 2**16, "num_steps": 2**16}, "more than a 32-bit integer"),
    ],
)
def test_batches_from_which_nothing_can_be_learnt_are_refused(name, settings, message):
    module = algorithms.get(name)
    with pytest.raises(ConfigurationError, match=message):
        module.make(ENV, module.Config(**({"critic_minibatches": 1} | settings)))


def test_minibatches_must_divide_the_batch():
    with pytest.raises(ConfigurationError, match=r"critic_minibatches = 7 does not divide .* 2048"):
        trpo.make(ENV, trpo.Config(critic_minibatches=7))


def test_fisher_subsample_may_not_skip_all_time_steps():
    with pytest.raises(ConfigurationError, match="fisher_subsample"):
        trpo.make(ENV, trpo.Config(num_steps=16, fisher_subsample=17))


def test_integers_and_arrays_of_numpy_and_jax_are_accepted():
    for value in (1, np.float32(0.5), jnp.float32(0.5), np.array(0.5), np.array([0.1, 0.2])):
        assert trpo.make(ENV, trpo.Config(max_kl=value)).steps_per_update == 2048
    assert trpo.make(ENV, trpo.Config(num_envs=np.int64(4))).steps_per_update == 1024


def test_real_fields_are_leaves_and_other_fields_are_static():
    leaves = jax.tree.leaves(trpo.Config())
    assert len(leaves) == 14
    assert all(isinstance(leaf, float) for leaf in leaves)


def test_an_unknown_algorithm_gets_a_suggestion():
    with pytest.raises(ConfigurationError, match="Did you mean trpo"):
        algorithms.get("tpro")


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_inherited_fields_have_a_heading_in_the_help(name):
    owners = [x for x in algorithms.get(name).Config.__mro__[1:] if vars(x).get("__annotations__")]
    assert not [x for x in owners if x.__doc__.startswith("Hyperparameters")]


def test_the_choices_of_a_field_are_the_names_that_the_library_knows():
    known = {"gae_critic": CRITICS, "activation": ACTIVATIONS, "memory": (NO_MEMORY, *CELLS)}
    known |= {"exploration": EXPLORATIONS, "loss": ppo.GAINS, "eta": CONTROL_WEIGHTS}
    for config in configs.CONFIGS.values():
        found = {field.name: field.metadata for field in dataclasses.fields(config)}
        for name in known.keys() & found:
            assert found[name]["choices"] == tuple(known[name])
    for bound in LOG_STD_BOUNDS:
        trpo.make(ENV, trpo.Config(log_std_init=bound))
        with pytest.raises(ConfigurationError, match="log_std_init"):
            trpo.make(ENV, trpo.Config(log_std_init=1.01 * bound))


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_config_has_the_name_that_users_know(name):
    config = algorithms.get(name).Config
    assert config is algorithms.config_of(name)
    assert str(config) == f"<class 'trpo_jax.algorithms.{name}.Config'>"
    assert pickle.loads(pickle.dumps(config())) == config()


@pytest.mark.parametrize("decorator", [fields.config, struct.dataclass])
def test_a_config_of_the_user_is_a_pytree(decorator):
    @decorator
    class Own(trpo.Config):
        number: float = fields.real(1.5, "help text")
        count: int = fields.integer(1, "help text", 1)
        plain: float = 2.5

    assert jax.tree.leaves(Own()) == [*jax.tree.leaves(trpo.Config()), 1.5, 2.5]
    assert jax.tree.map(jnp.ones_like, Own(count=3)).replace(count=4).number == 1.0


def test_each_number_of_a_field_is_checked():
    env = toll_road()._replace(costs=("a", "b"))
    make = lambda limit: trpo_lag.make(env, trpo_lag.Config(cost_limit=limit))
    for limit in (25.0, (25.0, 10.0), [25, 10.5], np.array([25.0, 10.0])):
        make(limit)
    message = (
        r"cost_limit = \(25.0, nan\) cannot work, because of nan: it must be a finite number or"
    )
    with pytest.raises(ConfigurationError, match=message):
        make((25.0, math.nan))
    with pytest.raises(ConfigurationError, match=r"cost_limit = 1e\+39 .* numbers have 32 bits"):
        make((25.0, 1e39))
    with pytest.raises(ConfigurationError, match=r"max_kl = \(0.1, 0.2\) cannot work"):
        trpo.make(ENV, trpo.Config(max_kl=(0.1, 0.2)))
