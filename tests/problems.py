"""Small policies whose results can also be computed by another method."""

import itertools

import jax
import jax.numpy as jnp

from trpo_jax.distributions import Categorical, DiagGaussian, Product


def mlp_params(key, sizes):
    """Returns weights and biases of a small network, in float64 if it is enabled."""
    keys = jax.random.split(key, 2 * len(sizes))
    dtype = jnp.zeros(0).dtype
    return [
        {
            "w": jax.random.normal(keys[2 * i], (m, n), dtype) / jnp.sqrt(m),
            "b": 0.1 * jax.random.normal(keys[2 * i + 1], (n,), dtype),
        }
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]


def mlp(params, x):
    """Applies a tanh network with a linear output layer."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def policies(key):
    """Returns (params, params -> distribution at 6 states) for each kind of distribution."""
    obs_key, param_key = jax.random.split(key)
    observations = jax.random.normal(obs_key, (2, 3, 4))  # batch axes [T, B] as in an update

    def categorical(params):
        return Categorical(mlp(params, observations))

    def product(params):
        x = mlp(params, observations)
        return Product(
            {
                "push": DiagGaussian(x[..., :1], 0.3 * x[..., 1:2]),
                "turn": (Categorical(x[..., 2:]),),
            }
        )

    def state_dependent_gaussian(params):
        mean, log_std = jnp.split(mlp(params, observations), 2, axis=-1)
        return DiagGaussian(mean, 0.3 * log_std)

    def gaussian(params):
        mean = mlp(params["mean"], observations)
        return DiagGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))

    def recurrent(params):
        def cell(hidden, x):
            hidden = jnp.tanh(mlp(params["cell"], jnp.concatenate([hidden, x], axis=-1)))
            return hidden, mlp(params["head"], hidden)

        _, logits = jax.lax.scan(cell, jnp.zeros((3, 3)), observations)
        return Categorical(logits)

    plain = mlp_params(param_key, (4, 5, 4))
    with_log_std = {"mean": mlp_params(param_key, (4, 5, 2)), "log_std": jnp.array([-0.4, 0.2])}
    recurrent_params = {
        "cell": mlp_params(param_key, (7, 3)),
        "head": mlp_params(obs_key, (3, 2)),
    }
    return {
        "categorical": (plain, categorical),
        "product": (plain, product),
        "gaussian": (with_log_std, gaussian),
        "state_dependent_gaussian": (plain, state_dependent_gaussian),
        "recurrent": (recurrent_params, recurrent),
    }


POLICIES = ("categorical", "product", "gaussian", "state_dependent_gaussian", "recurrent")
