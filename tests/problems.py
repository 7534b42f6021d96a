"""Small policies whose results can also be computed by another method."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.distributions import Categorical, DiagGaussian, Product


def mlp_params(seed, sizes):
    """Returns weights and biases of a small network, in float64 if it is enabled."""
    rng = np.random.default_rng(seed)
    return [
        jax.device_put({"w": rng.normal(size=(m, n)) / np.sqrt(m), "b": 0.1 * rng.normal(size=n)})
        for m, n in itertools.pairwise(sizes)
    ]


def mlp(params, x):
    """Applies a tanh network with a linear output layer."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


@functools.cache
def policies(seed):
    """Returns (params, params -> distribution, actions) at 6 states for each kind of distribution.

    Nothing here is compiled.
    """
    rng = np.random.default_rng(seed)
    observations = jax.device_put(rng.normal(size=(2, 3, 4)))  # batch axes [T, B] as in an update
    choices = lambda count: rng.integers(count, size=(2, 3))
    numbers = lambda count: rng.normal(size=(2, 3, count))

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

    plain, log_std = mlp_params((seed, 1), (4, 5, 4)), jax.device_put(np.array([-0.4, 0.2]))
    with_log_std = {"mean": mlp_params((seed, 1), (4, 5, 2)), "log_std": log_std}
    recurrent_params = {
        "cell": mlp_params((seed, 1), (7, 3)),
        "head": mlp_params((seed, 2), (3, 2)),
    }
    joint = {"push": numbers(1), "turn": (choices(2),)}
    return {
        "categorical": (plain, categorical, jax.device_put(choices(4))),
        "product": (plain, product, jax.device_put(joint)),
        "gaussian": (with_log_std, gaussian, jax.device_put(numbers(2))),
        "state_dependent_gaussian": (
            plain,
            state_dependent_gaussian,
            jax.device_put(numbers(2)),
        ),
        "recurrent": (recurrent_params, recurrent, jax.device_put(choices(2))),
    }


POLICIES = ("categorical", "product", "gaussian", "state_dependent_gaussian", "recurrent")
