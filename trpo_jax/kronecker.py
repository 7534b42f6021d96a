"""A preconditioner of the Fisher matrix, of one Kronecker product for each layer.

The block of the Fisher matrix that belongs to a layer y = x W is E[x x^T (x) g g^T], with g the
derivative of the log-probability of an action that the policy draws. Taking the two factors for
independent leaves E[x x^T] (x) E[g g^T] (Martens and Grosse 2015, arXiv:1503.05671, section 3; for
convolutions Grosse and Martens 2016, arXiv:1602.01407, section 3), whose inverse costs no more than
those of the factors. As a direction of its own it is crude (ACKTR, Wu et al. 2017,
arXiv:1708.05144); in front of conjugate gradient with exact products it only decides how soon the
solution is reached, not which.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from trpo_jax.errors import ConfigurationError
from trpo_jax.solvers import damped_solver, positive_definite_inverse
from trpo_jax.transform import System
from trpo_jax.trust_region import Solve

LARGEST_FACTOR = 1024  # rows; the inverse of a larger one costs more than the products it saves
Path = tuple[str, ...]
Layers = Mapping[Path, Float[Array, "N ..."]]


def with_layers(call: Callable[[], Any], offsets: Layers) -> tuple[Any, Layers]:
    """Returns the result of a call, and the inputs `[N, ..., features]` of each layer in it.

    A layer is a `Dense` of flax linen.

    Args:
        call: a function of nothing that applies a linen module.
        offsets: an array to add to what a layer gives, by the path of the layer's parameters.

    Raises:
        ValueError: if a layer is applied more than once, so that it has no inputs of its own.
    """
    inputs = {}

    def intercept(layer, args, kwargs, context):
        output = layer(*args, **kwargs)
        path = context.module.path
        if not isinstance(context.module, nn.Dense):
            return output
        if path in inputs:
            raise ValueError(f"the layer {'/'.join(path)} is applied more than once")
        inputs[path] = args[0]
        return output + offsets.get(path, 0)

    with nn.intercept_methods(intercept):
        return call(), inputs


def kronecker_preconditioner(
    log_probs: Callable[[Layers], tuple[Float[Array, "..."], Layers]],
    params: PyTree[Array],
    damping: Float[Array, ""] | float,
) -> Callable[[PyTree[Array]], PyTree[Array]]:
    """Returns the function `v -> M^-1 v`, with M near F + damping I.

    The damping is split between the two factors of a layer as in Martens and Grosse, section 6.3.
    A factor of more than `LARGEST_FACTOR` rows counts as its mean eigenvalue times the identity,
    and parameters outside of fully connected layers as the identity.

    Args:
        log_probs: maps an offset of each layer's output, none meaning 0, to the log-probabilities
            of actions that the policy drew, of any shape with N states first, and to the inputs
            `[N, ..., features]` of each layer, both by the path of its parameters.
        params: nested dictionaries, with a `kernel` and a `bias` where a layer is.
        damping: added to the diagonal.
    """
    flat = flatten_dict(params)
    _, shapes = jax.eval_shape(log_probs, {})
    offsets = {
        path: jnp.zeros((*x.shape[:-1], *flat[*path, "bias"].shape), x.dtype)
        for path, x in shapes.items()
    }

    def total(offsets):
        values, inputs = log_probs(offsets)
        return jnp.sum(values), inputs

    scores, inputs = jax.grad(total, has_aux=True)(offsets)
    factors = {path: _inverse_factors(inputs[path], scores[path], damping) for path in inputs}

    @jax.default_matmul_precision("float32")  # it is traced where it is called
    def precondition(vector: PyTree[Array]) -> PyTree[Array]:
        solved = {name: x / (1 + damping) for name, x in flatten_dict(vector).items()}
        for path, (of_inputs, of_scores) in factors.items():
            kernel, bias = (flatten_dict(vector)[*path, name] for name in ("kernel", "bias"))
            both = of_scores(of_inputs(jnp.concatenate([kernel, bias[None]])).T).T
            solved[*path, "kernel"], solved[*path, "bias"] = both[:-1], both[-1]
        return unflatten_dict(solved)

    return precondition


def kronecker_solver(system: System) -> Solve:
    """Returns the function that solves a system by preconditioned conjugate gradient.

    The model has to be of flax linen, and its parameters those of `module.init(...)` or their part
    "params". The labels of the scores are drawn from the predictions of the model.

    Raises:
        ConfigurationError: if the model is another, or applies a layer more than once.

    Example:
        >>> natural_gradient(max_kl=0.01, damping=1e-3, cg_iters=3, solver=kronecker_solver)
    """
    refused = (
        "kronecker_solver needs a model of Dense layers of flax linen, each with a bias and "
        "applied once ({}). Choose conjugate gradient (solver=None), which serves every model."
    )
    if not isinstance(system.params, Mapping):
        raise ConfigurationError(refused.format("its parameters are no dictionary"))
    whole = set(system.params) == {"params"}
    part = system.params["params"] if whole else system.params
    labels = system.distribution_fn(system.params).sample(
        jax.random.fold_in(jax.random.key(0), system.count)
    )

    def log_probs(offsets):
        distribution, inputs = with_layers(lambda: system.distribution_fn(system.params), offsets)
        values = distribution.log_prob(labels)
        return values if system.weights is None else values * jnp.sqrt(system.weights), inputs

    try:
        with jax.default_matmul_precision("float32"):
            precondition = kronecker_preconditioner(log_probs, part, system.damping)
    except KeyError as error:
        raise ConfigurationError(refused.format("a layer without kernel or bias")) from error
    except ValueError as error:
        raise ConfigurationError(refused.format(error)) from error
    return damped_solver(
        system.product,
        damping=system.damping,
        num_iterations=system.num_iterations,
        precondition=(lambda v: {"params": precondition(v["params"])}) if whole else precondition,
    )


def _inverse_factors(
    inputs: Float[Array, "N ... I"], scores: Float[Array, "N ... O"], damping: Any
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns the products with the inverse damped factors of a layer, for inputs and scores."""
    num_states, rows = inputs.shape[0], inputs.reshape(-1, inputs.shape[-1])
    # A bias is a weight of an input that is always 1.
    rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
    columns = scores.reshape(-1, scores.shape[-1])
    mean_of_inputs = jnp.sum(rows**2) / num_states / rows.shape[1]
    mean_of_scores = jnp.mean(columns**2)
    eps = jnp.finfo(rows.dtype).eps  # a layer that is not felt has no scores
    ratio, root = jnp.sqrt((mean_of_inputs + eps) / (mean_of_scores + eps)), jnp.sqrt(damping)
    return (
        _inverse_product(rows, num_states, mean_of_inputs, ratio * root),
        _inverse_product(columns, len(columns), mean_of_scores, root / ratio),
    )


def _inverse_product(
    rows: Float[Array, "R n"], count: int, mean_eigenvalue: Array, damping: Array
) -> Callable[[Float[Array, "n m"]], Float[Array, "n m"]]:
    """Returns the function `x -> (rows^T rows / count + damping I)^-1 x`."""
    if rows.shape[1] > LARGEST_FACTOR:
        return lambda x: x / (mean_eigenvalue + damping)
    identity = jnp.eye(rows.shape[1], dtype=rows.dtype)
    inverse = positive_definite_inverse(rows.T @ rows / count + damping * identity)
    return lambda x: inverse @ x
