"""Measures the cost of a natural-gradient update, and when the sample-space solver is faster.

The first table shows the cost of an update in units of a gradient, for networks of 10^4 to 10^7
parameters. The second table compares the solver in sample space with conjugate gradient, which runs
until it is as accurate. The script writes natural_gradient_costs.md. No other program should run at
the same time.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from natural_gradient import Problem, problems
from rich.console import Console
from timing import time_in_turns

from trpo_jax import (
    Categorical,
    DiagGaussian,
    kronecker_solver,
    natural_gradient,
    sample_space_solver,
)
from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.records.files import create_run_folder, write_whole
from trpo_jax.running.description import provenance, provenance_lines

BATCH = 512
WIDTHS = {64: "10^4", 960: "10^6", 3100: "10^7"}  # width of two hidden layers: parameters
DAMPINGS = (1e-2, 1e-4)
ACCURATE = 1e-3  # largest relative residual of conjugate gradient
ITERATIONS = (5, 10, 20, 40, 80, 160, 320, 640)


class Net(nn.Module):
    """A tanh network of two hidden layers."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        for _ in range(2):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


class Case(NamedTuple):
    """A network and a batch: its parameters, the distributions and the loss."""

    params: Any
    distribution_fn: Any
    loss: Any


def case(width: int, examples: int, outputs: int) -> Case:
    """Returns a regression if there is one output, otherwise a classification."""
    net = Net(width, outputs)
    inputs = jax.random.normal(jax.random.key(0), (examples, 64))
    params = net.init(jax.random.key(1), inputs)
    if outputs > 1:
        labels = jax.random.randint(jax.random.key(2), (examples,), 0, outputs)
        distribution_fn = lambda params: Categorical(net.apply(params, inputs))
    else:
        labels = jnp.sin(inputs[:, :1])
        distribution_fn = lambda params: DiagGaussian(net.apply(params, inputs), 0 * labels)
    loss = lambda params: -jnp.mean(distribution_fn(params).log_prob(labels))
    return Case(params, distribution_fn, loss)


def update_of(case: Case, **settings: Any):
    """Returns a function without arguments that computes a gradient and an update."""
    optimizer = natural_gradient(**settings)
    state = optimizer.init(case.params)

    def update(params, state):
        return optimizer.update(
            jax.grad(case.loss)(params),
            state,
            params,
            distribution_fn=case.distribution_fn,
            value_fn=case.loss,
        )

    compiled = jax.jit(update).lower(case.params, state).compile()
    return lambda: compiled(case.params, state)


def costs_of_updates(repeats: int) -> Iterator[str]:
    """Yields a table of the cost of updates in units of a gradient."""
    settings = {
        "conjugate gradient, 10 iterations": {},
        "the same, and a line search": {"line_search_steps": 10},
        "Kronecker-preconditioned, 3 iterations": {"solver": kronecker_solver, "cg_iters": 3},
    }
    yield f"| parameters | a gradient, ms | {' | '.join(settings)} |"
    yield "| ---: | ---: " + "| ---: " * len(settings) + "|"
    for width in WIDTHS:
        here = case(width, BATCH, outputs=10)
        gradient = jax.jit(jax.grad(here.loss))
        calls = {"gradient": lambda gradient=gradient, here=here: gradient(here.params)}
        calls |= {name: update_of(here, **x) for name, x in settings.items()}
        seconds = time_in_turns(calls, repeats)
        ratios = [np.median(seconds[name] / seconds["gradient"]) for name in settings]
        size = sum(x.size for x in jax.tree.leaves(here.params))
        cells = [f"{size:,}", f"{1e3 * np.median(seconds['gradient']):.1f}"]
        yield "| " + " | ".join([*cells, *(f"{ratio:.1f}" for ratio in ratios)]) + " |"


def systems() -> Iterator[tuple[str, Case]]:
    """Yields cases by name: untrained networks with one output, and a trained autoencoder."""
    for width, most in {64: 1024, 960: 256}.items():
        for examples in (16, 64, 256, 1024):
            if examples <= most:
                yield "untrained", case(width, examples, outputs=1)
    problem = problems()["autoencoder"]
    params = trained(problem)
    for examples in (1, 4, 16):
        images = problem.inputs[:examples]
        distribution_fn = lambda params, x=images: problem.distribution(params, x)
        loss = lambda params, x=images: problem.loss(problem.distribution(params, x), x)
        yield "autoencoder", Case(params, distribution_fn, loss)


def trained(problem: Problem) -> Any:
    """Returns the parameters after 30 steps of training."""
    optimizer = natural_gradient(jnp.inf, 1.0, learning_rate=1.0, solver=kronecker_solver)

    def step(carry, _):
        params, state = carry
        predict = lambda params: problem.distribution(params, problem.inputs)
        gradients = jax.grad(problem.value)(params)
        updates, state = optimizer.update(gradients, state, params, distribution_fn=predict)
        return (optax.apply_updates(params, updates), state), None

    params = problem.init(jax.random.key(0))
    (params, _), _ = jax.jit(lambda x: jax.lax.scan(step, x, length=30))(
        (params, optimizer.init(params))
    )
    return params


def sample_space(repeats: int) -> Iterator[str]:
    """Yields a table that compares the sample-space solver with conjugate gradient."""
    yield (
        "| network | parameters | outputs | damping | sample space, ms | residual "
        "| conjugate gradient, ms | iterations | residual | ratio of times |"
    )
    yield "| --- " + "| ---: " * 9 + "|"
    for name, here in systems():
        for damping in DAMPINGS:
            settings = {"cg_iters": 1, "solver": sample_space_solver}
            exact = update_of(here, damping=damping, **settings)
            for iterations in ITERATIONS:
                iterative = update_of(here, damping=damping, cg_iters=iterations)
                residual = float(iterative()[1].info.residual)
                if residual <= ACCURATE:
                    break
            seconds = time_in_turns({"exact": exact, "iterative": iterative}, repeats)
            times = {name: 1e3 * np.median(x) for name, x in seconds.items()}
            size = sum(x.size for x in jax.tree.leaves(here.params))
            mean = jax.tree.leaves(here.distribution_fn(here.params))[0]
            cells = [name, f"{size:,}", str(mean.size), f"{damping:g}", f"{times['exact']:.1f}"]
            cells += [f"{float(exact()[1].info.residual):.0e}", f"{times['iterative']:.1f}"]
            cells += [str(iterations), f"{residual:.0e}"]
            ratio = np.median(seconds["iterative"] / seconds["exact"])
            yield "| " + " | ".join([*cells, f"{ratio:.1f}"]) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
        add = parser.add_argument
        add(
            "--repeats",
            type=int,
            default=7,
            metavar="N",
            help="number of turns of each call (default: 7)",
        )
        help_text = "output folder; it must be new or empty (default: runs/natural_gradient_costs)"
        default = Path("runs/natural_gradient_costs")
        add("--out", type=Path, default=default, metavar="FOLDER", help=help_text)
        args = parser.parse_args(words)
        folder = create_run_folder(args.out)
    command = " ".join(
        ["python3 -m uv run", "experiments/benchmarks/natural_gradient_costs.py", *words]
    )
    lines = ["```", command, "```", ""]
    for make in (costs_of_updates, sample_space):
        for line in make(args.repeats):
            console.print(line)
            lines.append(line)
        lines.append("")
    lines += provenance_lines([provenance("CartPole-v1")])
    write_whole(folder / "natural_gradient_costs.md", "\n".join(lines) + "\n")
    console.print(f"Tables: {folder / 'natural_gradient_costs.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
