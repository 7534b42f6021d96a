"""The natural-gradient step of a trust region as an optax transform, for any model.

A model predicts a distribution for each example of a batch. The Fisher matrix F of these
distributions measures how much a step s of the parameters changes the predictions: the mean KL
divergence is about s^T F s / 2. The natural gradient x solves (F + damping I) x = g (Amari 1998).

Two numbers limit the length of the step along x, and the shorter step is taken. One is a bound on
the mean KL divergence, as in TRPO (Schulman et al. 2015, arXiv:1502.05477, appendix C). The other
is a fixed multiple of x, as in Gauss-Newton methods (Martens 2020, arXiv:1412.1193, sections 6 and
8).

The algorithms of this library use the same solvers, step length and line search.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from trpo_jax.errors import ConfigurationError
from trpo_jax.fisher import (
    DistributionFn,
    MatrixVectorProduct,
    fisher_vector_product,
    outputs_that_depend,
)
from trpo_jax.line_search import backtracking
from trpo_jax.solvers import damped_solver
from trpo_jax.trust_region import Solve, kl_length

Params = PyTree[Array]
Scalar = Float[Array, ""]
ScalarOrSchedule = float | Array | Callable[[Int[Array, ""]], Any]
DampingRule = Callable[[Scalar, Scalar], Scalar]


class System(NamedTuple):
    """The linear system (F + damping I) x = g of one update, as a solver receives it.

    Attributes:
        distribution_fn: maps parameters to the distributions of the batch.
        params: the parameters at which F is taken.
        product: `v -> F v`.
        damping: the number that is added to the diagonal of F, scalar.
        num_iterations: number of products with F that an iterative solver may make.
        weights: a weight for each example, with mean 1, or None.
        count: number of updates before this one, scalar.
    """

    distribution_fn: DistributionFn
    params: Params
    product: MatrixVectorProduct
    damping: Scalar
    num_iterations: int
    weights: Float[Array, "*batch"] | None
    count: Int[Array, ""]


Solver = Callable[[System], Solve]


class NaturalGradientInfo(NamedTuple):
    """Measurements of the last update. All numbers are scalars, KL divergences are in nats.

    Means are over the examples of the batch.

    Attributes:
        kl: mean of KL(old || new).
        kl_predicted: s^T F s / 2 for the step s that was taken.
        gain: the decrease of `value_fn`; 0 without a `value_fn`.
        gain_predicted: the decrease if F is the Hessian of `value_fn`: -gradient.s - s^T F s / 2.
        curvature: x^T (F + damping I) x / x^T x along the natural gradient x.
        residual: ||g - (F + damping I) x|| / ||g||.
        iterations: number of iterations of the solver that changed x.
        damping: the number that was added to the diagonal of F.
        fraction: fraction of the step that the line search took. 0 if it took no step; 1 without a
            line search.
    """

    kl: Scalar
    kl_predicted: Scalar
    gain: Scalar
    gain_predicted: Scalar
    curvature: Scalar
    residual: Scalar
    iterations: Int[Array, ""]
    damping: Scalar
    fraction: Scalar


class NaturalGradientState(NamedTuple):
    """The state of the transform between two updates.

    Attributes:
        count: number of updates, scalar.
        damping: the damping of the next update if `damping_rule` changes it, scalar.
        direction: the last natural gradient, a tree like the parameters; `()` without momentum.
        info: measurements of the last update.
    """

    count: Int[Array, ""]
    damping: Scalar
    direction: Params | tuple[()]
    info: NaturalGradientInfo


class NaturalGradientTransform(optax.GradientTransformationExtraArgs):
    """An optax transform whose state has a type that type checkers know.

    Attributes:
        init: `params -> state`.
        update: `(gradients, state, params, *, distribution_fn, ...) -> (updates, state)`.
    """

    init: Callable[[Params], NaturalGradientState]
    update: Callable[..., tuple[Params, NaturalGradientState]]


def natural_gradient(
    max_kl: ScalarOrSchedule = 0.01,
    damping: ScalarOrSchedule = 0.1,
    cg_iters: int = 10,
    *,
    learning_rate: ScalarOrSchedule | None = None,
    momentum: Float[Array, ""] | float = 0.0,
    line_search_steps: int = 0,
    line_search_shrink: Float[Array, ""] | float = 0.5,
    damping_rule: DampingRule | None = None,
    damped_scaling: bool = True,
    solver: Solver | None = None,
) -> NaturalGradientTransform:
    """Returns the optax transform that turns a gradient into a natural-gradient step.

    The updates decrease the loss, as optax expects: add them with `optax.apply_updates`. They are
    complete steps, so do not scale them by another learning rate. To add weight decay, chain the
    transform with `optax.add_decayed_weights(-1e-3)`. The number is negative, because no
    learning rate with a minus sign follows.

    The signature of its update is
    `update(gradients, state, params, *, distribution_fn, value_fn=None, weights=None)`:

    - `distribution_fn` maps parameters to the predictive distributions of the batch. They are from
      `trpo_jax.distributions`, or a NamedTuple of your own with the methods `kl` and
      `fisher_product`. Their batch axes may have any shape.
    - `value_fn` maps parameters to the loss whose gradients are `gradients`. The line search and
      `damping_rule` need it.
    - `weights` is an array `[*batch]` that weights the examples in F and in the mean KL divergence.
      For example, a mask of tokens is 1 at the tokens that count.

    Args:
        max_kl: bound on the mean KL divergence of a step, in nats; `jnp.inf` for no bound.
        damping: added to the diagonal of F.
        cg_iters: number of products with F in a solve.
        learning_rate: a step is at most this multiple of the natural gradient. 1 is the
            Gauss-Newton step. A loss that has to converge needs a number. None makes every step as
            long as `max_kl` allows. This suits a loss that changes after each step, such as the
            loss of a policy.
        momentum: fraction of the last natural gradient x_last that is kept in directions in which
            the batch gives no information. x minimises the quadratic model of the batch plus
            damping / 2 ||x - momentum x_last||^2 (SPRING, Goldshlager et al. 2024,
            arXiv:2401.10190).
        line_search_steps: largest number of fractions of the step to try, the largest first. The
            search takes the first fraction that decreases the loss and has a KL divergence of at
            most `max_kl`. If there is none, the parameters stay as they are. 0 takes every step
            without a search.
        line_search_shrink: factor between one fraction and the next.
        damping_rule: `(damping, gain / gain_predicted) -> damping` of the next update; see
            `levenberg_marquardt`. `damping` is then the damping of the first update.
        damped_scaling: see `damped` of `trpo_jax.trust_region.kl_length`.
        solver: solves the system. None stands for `conjugate_gradient_solver`. The others are
            `trpo_jax.kronecker_solver` and `trpo_jax.sample_space_solver`, which need a damping
            above 0.

    A number may be a schedule, `count -> number`, if its annotation is `ScalarOrSchedule`. With
    `optax.inject_hyperparams`, name `cg_iters`, `line_search_steps` and every function in its
    `static_args`. With `optax.MultiSteps`, F is computed from the last batch only.

    If a batch has few examples compared with the number of parameters, use more damping than for a
    whole data set. Otherwise the step fits the noise of the batch.

    Raises:
        ConfigurationError: if a number cannot work; in `update`, if `distribution_fn` is missing,
            does not fit the parameters or does not return a distribution.

    Examples:
        >>> inputs, labels = jnp.eye(4), jnp.array([0, 1, 0, 1])
        >>> distribution_fn = lambda params: trpo_jax.Categorical(inputs @ params["w"])
        >>> loss_fn = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
        >>> params = {"w": jnp.zeros((4, 2))}
        >>> optimizer = trpo_jax.natural_gradient(max_kl=0.01, damping=1e-3)
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(
        ...     jax.grad(loss_fn)(params), state, params, distribution_fn=distribution_fn
        ... )
        >>> params = optax.apply_updates(params, updates)
        >>> print(f"{state.info.kl:.3f} nats")
        0.010 nats
    """
    _require_numbers(locals())
    solver = conjugate_gradient_solver if solver is None else solver

    def init(params: Params) -> NaturalGradientState:
        zero = jnp.zeros((), _dtype(params))
        count = jnp.zeros((), jnp.int32)
        info = NaturalGradientInfo(*[zero] * len(NaturalGradientInfo._fields))
        first_damping = zero if callable(damping) else zero + damping
        direction = optax.tree.zeros_like(params) if _on(momentum) else ()
        return NaturalGradientState(
            count, first_damping, direction, info._replace(iterations=count)
        )

    def update(
        gradients, state, params=None, *, distribution_fn=None, value_fn=None, weights=None, **_
    ):
        _require_distribution(distribution_fn, params)
        if value_fn is None and (line_search_steps or damping_rule is not None):
            needs = "line_search_steps > 0" if line_search_steps else "damping_rule"
            raise ConfigurationError(
                f"{needs} needs value_fn, the loss as a function of the parameters. Pass it to "
                "update."
            )
        now = lambda number: number(state.count) if callable(number) else number
        radius = now(max_kl)
        added = state.damping if damping_rule is not None else jnp.asarray(now(damping))
        if weights is not None:
            # If all weights are 0, they stay 0, and there is no step.
            total = jnp.mean(weights)
            weights = weights / jnp.where(total > 0, total, 1)
        solve = solver(
            System(
                distribution_fn,
                params,
                fisher_vector_product(distribution_fn, params, weights),
                added,
                cg_iters,
                weights,
                state.count,
            )
        )

        descent = rhs = optax.tree.scale(-1, gradients)
        if _on(momentum):
            rhs = optax.tree.add_scale(descent, added * momentum, state.direction)
        solution = solve(rhs)
        x = solution.x
        length = kl_length(rhs, x, max_kl=radius, damping=added, damped=damped_scaling)
        if learning_rate is not None:
            length = jnp.minimum(length, now(learning_rate))
        step = optax.tree.scale(length, x)

        with jax.default_matmul_precision("float32"):
            old = distribution_fn(params)
            old_value = 0.0 if value_fn is None else value_fn(params)

            def evaluate(candidate):
                kl = old.kl(distribution_fn(candidate))
                value = 0.0 if value_fn is None else value_fn(candidate)
                return old_value - value, jnp.mean(kl if weights is None else weights * kl)

            fraction = jnp.ones(())
            if line_search_steps:
                search = backtracking(
                    evaluate, params, step, radius, line_search_shrink, line_search_steps
                )
                fraction = search.fraction
            # A select instead of a product, because 0 times infinity is not 0.
            updates = jax.tree.map(
                lambda s, p: jnp.where(fraction > 0, fraction * s, 0).astype(p.dtype),
                step,
                params,
            )
            gain, kl = evaluate(optax.apply_updates(params, updates))

        damped_curvature, norm = optax.tree.vdot(rhs, x), optax.tree.vdot(x, x)
        undamped_curvature = jnp.maximum(damped_curvature - added * norm, 0.0)
        kl_predicted = (fraction * length) ** 2 * undamped_curvature / 2
        gain_predicted = fraction * optax.tree.vdot(descent, step) - kl_predicted
        info = NaturalGradientInfo(
            kl=kl,
            kl_predicted=kl_predicted,
            gain=gain,
            gain_predicted=gain_predicted,
            curvature=_ratio(damped_curvature, norm),
            residual=solution.residual,
            iterations=solution.iterations,
            damping=added,
            fraction=fraction,
        )
        if damping_rule is not None:
            added = damping_rule(added, _ratio(gain, gain_predicted))
        like = lambda new, old: jnp.asarray(new, old.dtype)
        return updates, NaturalGradientState(
            optax.safe_increment(state.count),
            like(added, state.damping),
            jax.tree.map(like, x, state.direction) if _on(momentum) else (),
            jax.tree.map(like, info, state.info),
        )

    return NaturalGradientTransform(init, update)


def conjugate_gradient_solver(system: System) -> Solve:
    """Returns the function that solves a system by conjugate gradient, the default solver."""
    return damped_solver(
        system.product, damping=system.damping, num_iterations=system.num_iterations
    )


def levenberg_marquardt(
    factor: float = 1.5, *, low: float = 0.25, high: float = 0.75, smallest: float = 1e-8
) -> DampingRule:
    """Returns a rule that lowers the damping if the quadratic model predicts the gain well.

    The damping is divided by `factor` if the gain is at least `high` times the predicted gain. It
    is multiplied by `factor` if the gain is at most `low` times the predicted gain (Martens 2010,
    section 4.1). The prediction assumes that F is the Hessian of the loss. This is true if the loss
    is the mean of -log p and the model fits the data.

    On a small batch the prediction is too good, because the step fits the batch itself. The rule
    then lowers the damping too far. Set `smallest` in this case.

    Args:
        factor: factor of a change.
        low: the damping grows if the ratio of the gains is at most this number.
        high: the damping shrinks if the ratio of the gains is at least this number.
        smallest: lower bound of the damping.

    Examples:
        >>> rule = trpo_jax.levenberg_marquardt(factor=2.0)
        >>> print(rule(jnp.array(1.0), jnp.array(0.9)))  # the gain was 0.9 times the predicted gain
        0.5
        >>> optimizer = trpo_jax.natural_gradient(
        ...     max_kl=jnp.inf, learning_rate=1.0, damping=1.0, damping_rule=rule
        ... )
    """

    def rule(damping: Scalar, ratio: Scalar) -> Scalar:
        # Not `ratio <= low`, because a ratio of NaN has to make the damping grow.
        grown = jnp.where(ratio > low, damping, damping * factor)
        return jnp.maximum(jnp.where(ratio >= high, damping / factor, grown), smallest)

    return rule


def unmasked(part: Params, whole: Params) -> Params:
    """Returns a tree in which the holes that `optax.masked` left are filled with leaves of `whole`.

    Use it to train a part of the parameters, such as adapters. `optax.masked` passes the raw
    gradients of the other parameters on. A second mask sets them to 0.

    Args:
        part: a tree with holes, which are instances of `optax.MaskedNode`.
        whole: a tree of the same structure without holes.

    Examples:
        >>> params = {"model": jnp.eye(2), "adapter": jnp.zeros((2, 2))}
        >>> distribution_fn = lambda p: trpo_jax.Categorical(p["model"] @ p["adapter"])
        >>> loss_fn = lambda p: -jnp.mean(distribution_fn(p).log_prob(jnp.array([0, 1])))
        >>> optimizer = optax.chain(
        ...     optax.masked(trpo_jax.natural_gradient(), {"model": False, "adapter": True}),
        ...     optax.masked(optax.set_to_zero(), {"model": True, "adapter": False}),
        ... )
        >>> updates, state = optimizer.update(
        ...     jax.grad(loss_fn)(params),
        ...     optimizer.init(params),
        ...     params,
        ...     distribution_fn=lambda part: distribution_fn(trpo_jax.unmasked(part, params)),
        ... )
        >>> {name: bool(jnp.any(update)) for name, update in updates.items()}
        {'adapter': True, 'model': False}
    """
    hole = lambda x: isinstance(x, optax.MaskedNode)
    return jax.tree.map(lambda own, other: other if hole(own) else own, part, whole, is_leaf=hole)


def _on(momentum: Any) -> bool:
    return not isinstance(momentum, int | float) or momentum > 0


def _dtype(params: Params) -> Any:
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)


def _ratio(numerator: Scalar, denominator: Scalar) -> Scalar:
    """Returns a ratio, or 0 if the denominator is not positive."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), 0.0)


def _require_numbers(given: dict[str, Any]) -> None:
    """Raises a ConfigurationError for a number that cannot work, unless the number is traced."""
    for name in ("cg_iters", "line_search_steps"):
        if not isinstance(given[name], int | np.integer):
            raise ConfigurationError(
                f"{name} = {given[name]!r} has to be a Python int, because the compiled program "
                f"depends on it. With optax.inject_hyperparams, name {name} in static_args."
            )
    known = {name: x for name, x in given.items() if isinstance(x, int | float | np.ndarray)}
    allowed = {
        "max_kl": (lambda x: x > 0, "above 0. jnp.inf stands for no bound"),
        "damping": (lambda x: 0 <= x < np.inf, "at least 0 and finite"),
        "cg_iters": (lambda x: x >= 1, "at least 1"),
        "learning_rate": (lambda x: 0 < x < np.inf, "above 0 and finite, or None"),
        "momentum": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "line_search_steps": (lambda x: x >= 0, "at least 0. 0 turns the line search off"),
        "line_search_shrink": (lambda x: 0 < x < 1, "between 0 and 1"),
    }
    for name, (is_allowed, text) in allowed.items():
        if name in known and not np.all(is_allowed(known[name])):
            raise ConfigurationError(f"{name} = {known[name]} has to be {text}.")
    unbounded = np.all(np.isposinf(known.get("max_kl", 1.0)))
    if unbounded and given["learning_rate"] is None:
        raise ConfigurationError(
            "max_kl = inf without a learning_rate does not limit the length of a step. Set max_kl "
            "to a finite number, or set learning_rate."
        )
    if given["damping_rule"] is not None and callable(given["damping"]):
        raise ConfigurationError(
            "damping is a schedule, and damping_rule would change it too. Use only one of them."
        )


def _require_distribution(distribution_fn: Any, params: Any) -> None:
    """Raises a ConfigurationError if a function does not map the parameters to a distribution."""
    if params is None:
        raise ConfigurationError(
            "natural_gradient needs the parameters: update(gradients, state, params, "
            "distribution_fn=...)."
        )
    if not callable(distribution_fn):
        found = "is missing" if distribution_fn is None else f"= {distribution_fn!r}"
        raise ConfigurationError(
            f"distribution_fn {found}. Pass a function from the parameters to the predictive "
            "distribution of the batch to update: distribution_fn=lambda params: "
            "Categorical(model.apply(params, inputs))."
        )
    try:
        distribution = jax.eval_shape(distribution_fn, params)
    except Exception as error:
        raise ConfigurationError(
            "distribution_fn cannot be evaluated at the parameters that update was given "
            f"({jax.tree.structure(params)}). It raised {type(error).__name__}: {error}"
        ) from error
    if not all(hasattr(distribution, name) for name in ("kl", "fisher_product")):
        raise ConfigurationError(
            f"distribution_fn returns a {type(distribution).__name__}, which is not a "
            "distribution, because it has no methods kl and fisher_product. Wrap the outputs of "
            "the model: Categorical(logits) for classes, DiagGaussian(mean, log_std) for real "
            "numbers."
        )
    if not any(outputs_that_depend(distribution_fn, params)):
        raise ConfigurationError(
            "distribution_fn returns the same distribution for all parameters. Make the model use "
            "the parameters that distribution_fn is called with."
        )
