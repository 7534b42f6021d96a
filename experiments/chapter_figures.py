"""Draws the figures of docs/how-trpo-works.md from the pieces of this library.

    python3 -m uv run experiments/chapter_figures.py [FIGURE ...]

Without a name, it draws all figures. It takes some minutes on two CPU cores. Each figure prints
the numbers that the chapter quotes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import trpo_jax
from trpo_jax.advantages import standardize
from trpo_jax.algorithms import on_policy, trpo
from trpo_jax.distributions import Categorical, Distribution
from trpo_jax.figures.curves import COLORS
from trpo_jax.fisher import fisher_vector_product
from trpo_jax.kronecker import kronecker_preconditioner, with_layers
from trpo_jax.solvers import conjugate_gradient, damped_solver
from trpo_jax.trust_region import (
    Surrogate,
    importance_sampled_surrogate,
    natural_step,
    surrogate_gradient,
)

FOLDER = Path(__file__).parent.parent / "docs" / "figures"
SIZE = (5.0, 3.4)  # inches: at 400 pixels of width, letters of 10 points are 11 pixels high
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 130,
}
BLUE, ORANGE, GREEN, PINK = COLORS[:4]


# Tasks with two or three states, small enough for exact numbers.


class Table(NamedTuple):
    """A task of two actions and a policy of two parameters.

    Attributes:
        moves: probability of the next state, `[s, a, s']`.
        rewards: `[s, a]`.
        start: probability of the first state, `[s]`.
        features: the logit of action 0 is the product of these with the parameters, `[s, 2]`.
    """

    moves: Array
    rewards: Array
    start: Array
    features: Array


GAMMA = 0.9
# A parameter for each state. Action 0 stays, action 1 goes to the other state. Staying pays 1 in
# the first state and 2 in the second one, where few episodes start.
TWO_STATES = Table(
    jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    jnp.array([[1.0, 0.0], [2.0, 0.0]]),
    jnp.array([0.9, 0.1]),
    jnp.eye(2),
)
# The last two states share a parameter.
THREE_STATES = Table(
    jax.nn.one_hot(jnp.array([[0, 1], [0, 0], [1, 2]]), 3),
    jnp.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]),
    jnp.full(3, 1 / 3),
    jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
)


def table_policy(table: Table, params: Array) -> Categorical:
    """Returns the policy at all states."""
    logits = table.features @ params
    return Categorical(jnp.stack([logits, jnp.zeros_like(logits)], axis=-1))


def exact(table: Table, params: Array) -> tuple[Array, Array, Array]:
    """Returns the return, the share of the discounted visits of each state, and the advantages."""
    policy = jax.nn.softmax(table_policy(table, params).logits)
    moves = jnp.einsum("sa,sat->st", policy, table.moves)
    resolvent = jnp.linalg.inv(jnp.eye(len(moves)) - GAMMA * moves)
    values = resolvent @ jnp.sum(policy * table.rewards, axis=1)
    advantages = table.rewards + GAMMA * table.moves @ values - values[:, None]
    return table.start @ values, (1 - GAMMA) * table.start @ resolvent, advantages


def exact_return(table: Table, params: Array) -> Array:
    """Returns eta of equation 1, exactly."""
    return exact(table, params)[0]


def exact_surrogate(table: Table, old_params: Array, params: Array) -> Array:
    """Returns L of equation 3, exactly."""
    value, visits, advantages = exact(table, old_params)
    policy = jax.nn.softmax(table_policy(table, params).logits)
    return value + visits @ jnp.sum(policy * advantages, axis=1) / (1 - GAMMA)


def mean_kl(table: Table, old_params: Array, params: Array) -> Array:
    """Returns the mean of KL(old || new) over the states that the old policy visits."""
    visits = exact(table, old_params)[1]
    return visits @ table_policy(table, old_params).kl(table_policy(table, params))


def plain_direction(table: Table, params: Array) -> Array:
    """Returns the exact gradient g of the return."""
    return jax.grad(partial(exact_return, table))(params)


def natural_direction(table: Table, params: Array) -> Array:
    """Returns F^-1 g for the exact gradient and the exact Fisher matrix."""
    visits = exact(table, params)[1]
    product = fisher_vector_product(partial(table_policy, table), params, len(visits) * visits)
    return damped_solver(product, damping=0.0, num_iterations=2)(plain_direction(table, params)).x


@jax.jit
def length_of_kl(table: Table, params: Array, direction: Array, max_kl: Array | float) -> Array:
    """Returns how far to go along a direction until the mean KL divergence is `max_kl`."""
    most = 20 / jnp.linalg.norm(direction)

    def halve(_, ends):
        middle = jnp.mean(ends)
        inside = mean_kl(table, params, params + middle * direction) <= max_kl
        return jnp.where(inside, jnp.array([middle, ends[1]]), jnp.array([ends[0], middle]))

    return jax.lax.fori_loop(0, 40, halve, jnp.array([0.0, most]))[0]


def surrogate_and_return(axes: Any) -> None:
    """Draws the exact return and the exact surrogate along one natural-gradient step."""
    table, old = THREE_STATES, jnp.array([0.5, 0.0])
    direction = natural_direction(table, old)
    lengths = jnp.linspace(0, length_of_kl(table, old, direction, 0.5), 200)
    points = old + lengths[:, None] * direction
    returns = jax.vmap(partial(exact_return, table))(points)
    surrogates = jax.vmap(partial(exact_surrogate, table, old))(points)
    kls = jax.vmap(partial(mean_kl, table, old))(points)
    axes.plot(lengths, surrogates, color=BLUE, label="surrogate $L$")
    axes.plot(lengths, returns, color=ORANGE, label=r"true return $\eta$")
    for max_kl in (0.01, 0.1, 0.4):
        length = length_of_kl(table, old, direction, max_kl)
        axes.axvline(length, color="0.8", linewidth=1, zorder=0)
        axes.annotate(f" KL {max_kl:g}", (length, 0.02), xycoords=("data", "axes fraction"))
        at = old + length * direction
        surrogate, value = exact_surrogate(table, old, at), exact_return(table, at)
        print(f"KL {max_kl}: surrogate {surrogate:.2f}, return {value:.2f}")
    best = jnp.argmax(returns)
    print(f"start {returns[0]:.2f}, largest return {returns[best]:.2f} at KL {kls[best]:.3f}")
    axes.set(xlabel="distance along the step", ylabel="return")
    axes.legend(loc="upper left")
    axes.set_title("The surrogate is right near the old policy only")


def gradient_steps(axes: Any) -> None:
    """Draws steps of one KL divergence along both gradients over contours of the return."""
    table, start, max_kl, num_steps = TWO_STATES, jnp.array([1.0, -1.5]), 0.03, 5
    grid = jnp.linspace(-3, 7, 161)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1)
    returns = jax.vmap(jax.vmap(partial(exact_return, table)))(points)
    kls = jax.vmap(jax.vmap(partial(mean_kl, table, start)))(points)
    filled = axes.contourf(grid, grid, returns, 12, cmap="Greys", alpha=0.7)
    axes.figure.colorbar(filled, ax=axes, label=r"return $\eta$")
    ways = {
        "plain gradient": (plain_direction, ORANGE),
        "natural gradient": (natural_direction, BLUE),
    }
    for name, (direction_of, color) in ways.items():
        path = [start]
        for _ in range(num_steps):
            direction = direction_of(table, path[-1])
            length = length_of_kl(table, path[-1], direction, max_kl)
            path.append(path[-1] + length * direction)
        axes.plot(*jnp.stack(path).T, ".-", color=color, markersize=5, label=name)
        values = [float(exact_return(table, x)) for x in path]
        print(name, [round(x, 2) for x in values], "ends at", path[-1])
    axes.contour(grid, grid, kls, [max_kl], colors=GREEN, linewidths=1.5)
    axes.plot([], [], color=GREEN, label=f"KL {max_kl:g} from the start")
    axes.plot(*start, "o", color="black", markersize=5)
    axes.set(xlabel=r"$\theta_1$: stay in state 1", ylabel=r"$\theta_2$: stay in state 2")
    axes.legend(loc="upper left", fontsize=8.5, frameon=True)
    axes.set_title("Five steps of the same KL divergence:\nthe natural gradient gets further")


# Real tasks: one batch of a policy that is partly trained.


class Problem(NamedTuple):
    """The step of one update, taken apart."""

    config: trpo.Config
    params: Any
    distribution_fn: Callable[[Any], Distribution]
    surrogate: Surrogate
    gradient: Any
    precondition: Callable[[Any], Any]


def problem_after(env_name: str, num_updates: int, seed: int = 0) -> Problem:
    """Returns the step of the policy that TRPO would take after so many updates."""
    env = trpo_jax.make_env(env_name)
    config = trpo_jax.defaults("trpo", env_name).config
    algorithm = trpo.make(env, config)
    state = jax.jit(algorithm.init)(jax.random.key(seed))
    train = lambda state: jax.lax.scan(
        lambda s, _: (algorithm.update(s)[0], None), state, length=num_updates
    )
    state, _ = jax.jit(train)(state)
    state, trajectory = jax.jit(algorithm.collect)(state)
    _, step_input, _ = on_policy.estimate(env, config, algorithm.agent, state, trajectory)
    params, batch = state.actor.policy_params, step_input.batch
    distribution_fn = lambda p: algorithm.agent.distributions(p, batch)
    surrogate = importance_sampled_surrogate(
        batch.actions, standardize(batch.advantages, batch.values)
    )

    def log_probs(offsets):
        distribution, inputs = with_layers(lambda: distribution_fn(params), offsets)
        return distribution.log_prob(batch.actions), inputs

    return Problem(
        config,
        params,
        distribution_fn,
        surrogate,
        surrogate_gradient(params, distribution_fn, surrogate),
        lambda damping: kronecker_preconditioner(log_probs, params, damping),
    )


def along(problem: Problem, step: Any, fractions: Array) -> tuple[Array, Array]:
    """Returns the gain of the surrogate and the mean KL divergence at fractions of a step."""
    old = problem.distribution_fn(problem.params)

    @jax.jit
    @jax.vmap
    def at(fraction):
        new = problem.distribution_fn(
            jax.tree.map(lambda p, s: p + fraction * s, problem.params, step)
        )
        gain = problem.surrogate(new, old) - problem.surrogate(old, old)
        return gain, old.kl(new).mean()

    return at(fractions)


def solver_of(problem: Problem, damping: float, num_iterations: int) -> Callable[[Any], Any]:
    """Returns plain conjugate gradient over all states of the batch."""
    product = fisher_vector_product(problem.distribution_fn, problem.params)
    return damped_solver(product, damping=damping, num_iterations=num_iterations)


def cg_residual(axes: Any) -> None:
    """Draws the residual of conjugate gradient over iterations, plain and preconditioned."""
    problem = problem_after("Swimmer-misc", 30)
    product = fisher_vector_product(problem.distribution_fn, problem.params)
    iterations = np.arange(1, 21)
    cases = [(0.1, ORANGE), (0.001, BLUE)]
    for damping, color in cases:
        damped = lambda v, damping=damping: jax.tree.map(
            lambda x, y: x + damping * y, product(v), v
        )
        preconditioners = {"plain": None, "preconditioned": problem.precondition(damping)}
        for (name, precondition), style in zip(preconditioners.items(), ("-", "--"), strict=True):
            solve = jax.jit(
                jax.vmap(
                    lambda n, p=precondition, d=damped: (
                        conjugate_gradient(d, problem.gradient, n, precondition=p).residual
                    )
                )
            )
            residuals = solve(jnp.asarray(iterations))
            label = f"{name}, damping {damping:g}"
            axes.semilogy(iterations, residuals, style, color=color, label=label)
            print(label, {n: f"{residuals[n - 1]:.1e}" for n in (1, 3, 5, 10, 20)})
    axes.axvline(10, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel="iterations of conjugate gradient", ylabel="relative residual")
    axes.set_ylim(1e-4, 2)
    axes.set_xticks([1, 5, 10, 15, 20])
    axes.legend(loc="lower left", fontsize=9)
    axes.set_title("Damping makes the system easy to solve,\na preconditioner saves iterations")


def predicted_kl(axes: Any) -> None:
    """Draws the KL divergence of full steps, as a share of the radius they were computed for."""
    problem = problem_after("Pendulum-v1", 10)
    damping = problem.config.damping
    solve = solver_of(problem, damping, 10)
    radii = jnp.geomspace(1e-4, 3, 19)
    for damped, color, name in ((False, ORANGE, "undamped length"), (True, BLUE, "damped length")):
        step_of = lambda radius, damped=damped: (
            natural_step(
                problem.gradient, solve, max_kl=radius, damping=damping, damped_scaling=damped
            ).step
        )
        # A step grows with the root of the radius, so all steps are fractions of one.
        shares = along(problem, step_of(1.0), jnp.sqrt(radii))[1] / radii
        axes.semilogx(radii, shares, color=color, marker="o", markersize=3.5, label=name)
        print(name, [f"{r:.1e}: {x:.2f}" for r, x in zip(radii, shares, strict=True)])
    axes.axhline(1, color="0.5", linestyle="--", linewidth=1.2, label="as predicted")
    axes.set_ylim(0, 3.5)
    axes.set(xlabel="max_kl: the predicted KL divergence", ylabel="measured over predicted")
    axes.legend(loc="upper left")
    axes.set_title("The quadratic model of the KL divergence\nholds up to a KL divergence of 0.5")


def line_search(figure: Figure) -> None:
    """Draws what the line search sees along a step that is too long."""
    problem = problem_after("Pendulum-v1", 10)
    max_kl, damping = 2.0, problem.config.damping
    full = natural_step(
        problem.gradient,
        solver_of(problem, damping, 10),
        max_kl=max_kl,
        damping=damping,
        damped_scaling=False,
    )
    fractions, candidates = jnp.linspace(0, 1.15, 100), 0.8 ** jnp.arange(10.0)
    gains, kls = along(problem, full.step, fractions)
    candidate_gains, candidate_kls = along(problem, full.step, candidates)
    accepted = int(np.argmax((candidate_gains > 0) & (candidate_kls <= max_kl)))
    left, right = figure.subplots(1, 2)
    left.plot(fractions, fractions * full.predicted_gain, "--", color="0.5", label="linear model")
    right.plot(fractions, fractions**2 * max_kl, "--", color="0.5", label="quadratic model")
    right.axhline(max_kl, color="black", linewidth=1, label="max_kl")
    for axes, line, values in ((left, gains, candidate_gains), (right, kls, candidate_kls)):
        axes.plot(fractions, line, color=BLUE, label="measured")
        axes.plot(candidates[:accepted], values[:accepted], "x", color=ORANGE, label="rejected")
        axes.plot(candidates[accepted], values[accepted], "o", color=GREEN, label="accepted")
        axes.set_xlabel("fraction of the step")
    left.set_title("gain of the surrogate")
    right.set_title("KL divergence")
    right.legend(fontsize=8.5)
    figure.suptitle("The line search shortens a step that is too long", fontsize=10.5)
    print("accepted", candidates[accepted], "candidates", candidate_gains, candidate_kls)


def radius_and_return(axes: Any) -> None:
    """Draws learning curves of three radii of the trust region."""
    env = trpo_jax.make_env("CartPole-v1")
    radii, num_updates = (0.0003, 0.01, 0.3), 48

    @jax.jit
    def train(key, radius):
        algorithm = trpo.make(
            env, trpo_jax.defaults("trpo", "CartPole-v1").config.replace(max_kl=radius)
        )
        step = lambda state, _: algorithm.update(state)
        return jax.lax.scan(step, algorithm.init(key), length=num_updates)[1]

    keys = jax.random.split(jax.random.key(0), 8)
    for radius, color in zip(radii, (PINK, BLUE, ORANGE), strict=True):
        metrics = jax.vmap(train, in_axes=(0, None))(keys, radius)
        counts, returns = metrics["num_episodes"], metrics["episodic_return"]
        returns = np.where(counts > 0, returns, np.nan)
        env_steps = 2048 * np.arange(1, num_updates + 1)
        axes.plot(env_steps, returns.T, color=color, linewidth=0.6, alpha=0.5)
        middle = np.nanmedian(returns, axis=0)
        axes.plot(env_steps, middle, color=color, label=f"max_kl {radius:g}")
        print(
            radius,
            "median at the end",
            np.nanmedian(returns[:, -5:]),
            "by seed",
            np.nanmean(returns[:, -5:], axis=1).round(0),
            "rejected",
            float(metrics["step_rejected"].mean()),
        )
    axes.set(xlabel="environment steps of a seed", ylabel="return of training episodes")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.legend(loc="lower right", frameon=True)
    axes.set_title("Small steps learn slowly,\nlarge steps break what they learn")


FIGURES = {
    "surrogate": surrogate_and_return,
    "gradient-steps": gradient_steps,
    "cg-residual": cg_residual,
    "predicted-kl": predicted_kl,
    "line-search": line_search,
    "max-kl": radius_and_return,
}


def main() -> None:
    """Draws the figures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", choices=[*FIGURES, []], help="default: all")
    for name in parser.parse_args().figures or FIGURES:
        print(f"-- {name}")
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=SIZE, layout="constrained")
            draw = FIGURES[name]
            draw(figure if draw is line_search else figure.subplots())
            figure.savefig(FOLDER / f"chapter-{name}.png")


if __name__ == "__main__":
    main()
