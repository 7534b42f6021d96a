"""A preconditioner of the Fisher matrix with one Kronecker product for each layer.

The block of the Fisher matrix that belongs to a layer y = x W is E[(x x^T) (x) (g g^T)]. Here (x)
is the Kronecker product, and g is the derivative in y of the log-probability of an action that is
drawn from the policy. If the two factors are treated as independent, the block is
E[x x^T] (x) E[g g^T] (Martens and Grosse 2015, arXiv:1503.05671, section 3; for convolutions Grosse
and Martens 2016, arXiv:1602.01407, section 3). Its inverse costs no more than the inverses of the
two factors.

The inverse alone gives a crude direction (ACKTR, Wu et al. 2017, arXiv:1708.05144). Here it
preconditions conjugate gradient with exact products. So it changes how fast the solution is
reached, but not the solution.
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

LARGEST_FACTOR = 1024  # rows; a larger inverse costs more than the products with F that it saves
Path = tuple[str, ...]
Layers = Mapping[Path, Float[Array, "N ..."]]


def with_layers(call: Callable[[], Any], offsets: Layers) -> tuple[Any, Layers]:
    """Returns the result of a call, and the inputs `[N, ..., features]` of each layer in it.

    A layer is a `Dense` of flax linen.

    Args:
        call: a function without arguments that applies a linen module.
        offsets: an array to add to the output of a layer, by the path of the parameters of the
            layer.

    Raises:
        ValueError: if a layer is applied more than once, because it then has more than one input.

    Examples:
        >>> network, x = nn.Sequential([nn.Dense(2)]), jnp.eye(4)
        >>> variables = network.init(jax.random.key(0), x)
        >>> y, inputs = with_layers(lambda: network.apply(variables, x), offsets={})
        >>> {path: x.shape for path, x in inputs.items()}
        {('layers_0',): (4, 4)}
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
    """Returns the function `v -> M^-1 v`, with M close to F + damping I.

    The damping is split between the two factors of a layer as in Martens and Grosse, section 6.3.
    A factor of more than `LARGEST_FACTOR` rows is replaced by its mean eigenvalue times the
    identity. For parameters outside of fully connected layers, F is replaced by the identity.

    Args:
        log_probs: maps offsets of the outputs of layers to the log-probabilities of actions that
            the policy drew, and to the inputs `[N, ..., features]` of each layer. The
            log-probabilities may have any shape with N states first. Offsets and inputs are
            dictionaries with the path of the parameters of a layer as key. A layer without an
            offset has the offset 0.
        params: nested dictionaries. Each layer has a `kernel` and a `bias`.
        damping: added to the diagonal.

    Examples:
        >>> x, actions = jnp.eye(4), jnp.array([0, 1, 0, 1])  # N = 4 states
        >>> network = nn.Sequential([nn.Dense(2)])
        >>> params = network.init(jax.random.key(0), x)["params"]
        >>> def log_probs(offsets):
        ...     call = lambda: network.apply({"params": params}, x)
        ...     logits, inputs = with_layers(call, offsets)
        ...     return trpo_jax.Categorical(logits).log_prob(actions), inputs
        >>> precondition = lambda v: kronecker_preconditioner(log_probs, params, damping=0.1)(v)
        >>> jax.tree.map(jnp.shape, jax.jit(precondition)(params))
        {'layers_0': {'bias': (2,), 'kernel': (4, 2)}}
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

    @jax.default_matmul_precision("float32")  # also if it is called outside of this function
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

    The model has to be a module of flax linen. Its parameters are `module.init(...)` or the part
    "params" of it. The labels of the scores are drawn from the predictions of the model.

    Raises:
        ConfigurationError: if the model is not of linen, has a layer without kernel or bias, or
            applies a layer more than once.

    Examples:
        >>> import flax.linen as nn
        >>> inputs, labels = jnp.eye(4), jnp.array([0, 1, 0, 1])
        >>> model = nn.Sequential([nn.Dense(2)])  # more layers work too
        >>> distribution_fn = lambda params: trpo_jax.Categorical(model.apply(params, inputs))
        >>> loss_fn = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
        >>> params = model.init(jax.random.key(0), inputs)
        >>> optimizer = trpo_jax.natural_gradient(
        ...     max_kl=0.01, damping=1e-3, cg_iters=3, solver=trpo_jax.kronecker_solver
        ... )
        >>> @jax.jit
        ... def step(params, state):
        ...     gradients = jax.grad(loss_fn)(params)
        ...     updates, state = optimizer.update(
        ...         gradients, state, params, distribution_fn=distribution_fn
        ...     )
        ...     return optax.apply_updates(params, updates), state
        >>> new_params, state = step(params, optimizer.init(params))
        >>> bool(loss_fn(new_params) < loss_fn(params))
        True
    """
    refused = (
        "kronecker_solver needs a model of Dense layers of flax linen. Each layer has to have a "
        "bias and to be applied once. The problem here: {}. Use conjugate gradient (solver=None), "
        "which works with every model."
    )
    if not isinstance(system.params, Mapping):
        raise ConfigurationError(refused.format("the parameters are not a dictionary"))
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
        raise ConfigurationError(refused.format("a layer has no kernel or no bias")) from error
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
    """Returns the products with the two inverse damped factors: of the inputs, of the scores."""
    num_states, rows = inputs.shape[0], inputs.reshape(-1, inputs.shape[-1])
    # A bias is the weight of an input that is always 1.
    rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
    columns = scores.reshape(-1, scores.shape[-1])
    mean_of_inputs = jnp.sum(rows**2) / num_states / rows.shape[1]
    mean_of_scores = jnp.mean(columns**2)
    eps = jnp.finfo(rows.dtype).eps  # all scores are 0 if the layer does not affect the policy
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
