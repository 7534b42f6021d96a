"""Compares the natural-gradient transform with Adam, SGD and kfac-jax on two classic problems.

One network classifies the digits of scikit-learn, and a deep autoencoder reconstructs them. Each
optimiser uses the best of six settings, chosen on seed 0. It then trains with seeds 100, 101, and
so on. The script writes natural_gradient.md, natural_gradient.json and natural_gradient.png. No
other program should run at the same time.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import distributions, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from sklearn.datasets import load_digits

from trpo_jax import (
    Categorical,
    DiagGaussian,
    kronecker_solver,
    levenberg_marquardt,
    natural_gradient,
)
from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.figures.curves import COLORS, Figure, file_of, style
from trpo_jax.records.files import create_run_folder, write_json, write_whole
from trpo_jax.running.description import provenance, provenance_lines

BATCH = 256  # examples in a step of Adam and SGD
TUNED_ON = 0  # the seed that chooses the settings
FIRST_SEED = 100


class Problem(NamedTuple):
    """A model, its data and its loss.

    Attributes:
        init: `key -> params`.
        distribution: `(params, inputs) -> distribution of the labels`.
        inputs: all examples, `[N, 64]`.
        labels: labels of all examples, `[N, ...]`.
        loss: `(distribution, labels) -> scalar`, which is -log p plus a constant.
    """

    init: Callable[[Any], Any]
    distribution: Callable[[Any, Any], Any]
    inputs: Any
    labels: Any
    loss: Callable[[Any, Any], Any]

    def value(self, params, rows=slice(None)):
        """Returns the mean loss of the examples in `rows`."""
        return self.loss(self.distribution(params, self.inputs[rows]), self.labels[rows])


class Contender(NamedTuple):
    """An optimiser and its settings.

    Attributes:
        settings: six settings, of which the best is used.
        train: `(problem, setting, seed, num_steps) -> Curve`.
        num_steps: number of steps for each problem.
    """

    settings: Sequence[Any]
    train: Callable[[Problem, Any, int, int], "Curve"]
    num_steps: dict[str, int]


class Curve(NamedTuple):
    """The loss of all examples at C moments. Seconds leave out compilation and measurement.

    Attributes:
        steps: number of updates so far, `[C]`.
        seconds: seconds of training so far, `[C]`.
        losses: mean loss of all examples, `[C]`.
    """

    steps: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


class Net(nn.Module):
    """Fully connected layers. All layers have a tanh, except the last one and the code.

    Attributes:
        sizes: widths of the layers.
        code: index of the layer that is the code of an autoencoder, or None.
    """

    sizes: Sequence[int]
    code: int | None = None

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        for i, size in enumerate(self.sizes):
            x = nn.Dense(size)(x)
            x = x if i in (self.code, len(self.sizes) - 1) else nn.tanh(x)
        return x


def problems() -> dict[str, Problem]:
    """Returns the problems by name."""
    data = load_digits()
    images, digits = jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target)
    classifier = Net((64, 64, 10))
    autoencoder = Net((128, 64, 32, 8, 32, 64, 128, 64), code=3)
    start = lambda net: lambda key: net.init(key, images[:1])
    return {
        "digits": Problem(
            start(classifier),
            lambda params, x: Categorical(classifier.apply(params, x)),
            images,
            digits,
            lambda d, y: -jnp.mean(d.log_prob(y)),
        ),
        "autoencoder": Problem(
            start(autoencoder),
            lambda params, x: DiagGaussian(autoencoder.apply(params, x), jnp.zeros_like(x)),
            images,
            images,
            lambda d, y: jnp.mean(jnp.sum((d.mean - y) ** 2, axis=-1)) / 2,
        ),
    }


def first_order(make: Callable[[Any], optax.GradientTransformation]):
    """Returns a `train` function with minibatches. The learning rate falls to 0 along a cosine."""

    def train(problem: Problem, rate: float, seed: int, num_steps: int) -> Curve:
        optimizer = make(optax.cosine_decay_schedule(rate, num_steps))

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(problem.inputs))
            updates, state = optimizer.update(jax.grad(problem.value)(params, rows), state, params)
            return optax.apply_updates(params, updates), state

        return timed(problem, optimizer.init, step, seed, num_steps, num_curve=100)

    return train


def second_order(problem: Problem, setting: tuple[int, float], seed: int, num_steps: int) -> Curve:
    """Trains by natural gradients of all examples, with Levenberg-Marquardt damping."""
    cg_iters, damping = setting
    optimizer = natural_gradient(
        max_kl=jnp.inf,
        damping=damping,
        cg_iters=cg_iters,
        learning_rate=1.0,
        damping_rule=levenberg_marquardt(),
        solver=kronecker_solver,
    )

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(problem.value)(params),
            state,
            params,
            distribution_fn=lambda p: problem.distribution(p, problem.inputs),
            value_fn=problem.value,
        )
        return optax.apply_updates(params, updates), state

    return timed(problem, optimizer.init, step, seed, num_steps, num_curve=num_steps)


def timed(problem: Problem, init, step, seed: int, num_steps: int, num_curve: int) -> Curve:
    """Returns the curve of a step `(carry, key) -> carry`, with `num_curve` measurements."""
    key = jax.random.key(seed)
    params = problem.init(key)
    carry = (params, init(params))
    keys = jax.random.split(key, (num_curve, num_steps // num_curve))
    scan = jax.jit(
        lambda carry, keys: jax.lax.scan(lambda c, k: (step(c, k), None), carry, keys)[0]
    )
    run = scan.lower(carry, keys[0]).compile()
    value = jax.jit(problem.value)
    losses, seconds = [float(value(params))], [0.0]
    for chunk in keys:
        started = time.perf_counter()
        carry = jax.block_until_ready(run(carry, chunk))
        seconds.append(seconds[-1] + time.perf_counter() - started)
        losses.append(float(value(carry[0])))
    return Curve(np.linspace(0, num_steps, num_curve + 1), np.array(seconds), np.array(losses))


def mend_kfac_jax() -> None:
    """Replaces the function of kfac-jax 0.0.8 that jax 0.10 broke: `get_bind_params` changed."""
    from kfac_jax._src import tag_graph_matcher

    def eval_jaxpr_eqn(equation, values):
        parameters = equation.primitive.get_bind_params(equation.params)
        output = equation.primitive.bind(*values, **parameters)
        return output if isinstance(output, list) else [output]

    tag_graph_matcher.eval_jaxpr_eqn = eval_jaxpr_eqn


def kfac(problem: Problem, damping: float, seed: int, num_steps: int) -> Curve:
    """Trains by kfac-jax on all examples, with its adaptive learning rate, momentum and damping."""
    import kfac_jax

    mend_kfac_jax()

    def loss(params, batch):
        inputs, labels = batch
        distribution = problem.distribution(params, inputs)
        if isinstance(distribution, Categorical):
            kfac_jax.register_softmax_cross_entropy_loss(distribution.logits, labels)
        else:
            kfac_jax.register_squared_error_loss(distribution.mean, labels, weight=0.5)
        return problem.loss(distribution, labels)

    optimizer = kfac_jax.Optimizer(
        value_and_grad_func=jax.value_and_grad(loss),
        l2_reg=0.0,
        use_adaptive_learning_rate=True,
        use_adaptive_momentum=True,
        use_adaptive_damping=True,
        initial_damping=damping,
        min_damping=1e-8,
        num_burnin_steps=0,
    )
    key = jax.random.key(seed)
    batch = (problem.inputs, problem.labels)

    def train(num_steps: int) -> Curve:
        params = problem.init(key)
        state = optimizer.init(params, key, batch)
        value = jax.jit(problem.value)
        losses, seconds = [float(value(params))], [0.0]
        for _ in range(num_steps):
            started = time.perf_counter()
            params, state, _ = optimizer.step(params, state, key, batch=batch)
            jax.block_until_ready(params)
            seconds.append(seconds[-1] + time.perf_counter() - started)
            losses.append(float(value(params)))
        return Curve(np.arange(num_steps + 1.0), np.array(seconds), np.array(losses))

    train(12)  # compiles; some programs of kfac-jax first run at the tenth step
    return train(num_steps)


RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
CONTENDERS = {
    "Adam": Contender(RATES, first_order(optax.adam), {"digits": 3000, "autoencoder": 12_000}),
    "SGD, momentum 0.9": Contender(
        tuple(10 * rate for rate in RATES),
        first_order(lambda rate: optax.sgd(rate, momentum=0.9)),
        {"digits": 3000, "autoencoder": 12_000},
    ),
    "kfac-jax": Contender(
        (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0), kfac, {"digits": 60, "autoencoder": 200}
    ),
    "natural_gradient": Contender(
        tuple(product((5, 10), (1.0, 0.1, 0.01))), second_order, {"digits": 60, "autoencoder": 120}
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        args = build_parser().parse_args(words)
        folder = create_run_folder(args.out)
    contenders = {
        name: contender
        for name, contender in CONTENDERS.items()
        if name != "kfac-jax" or find_spec("kfac_jax")
    }
    rows = {}
    for task, problem in problems().items():
        length = lambda name, task=task: max(2, int(args.share * contenders[name].num_steps[task]))
        chosen = {}
        for name, (settings, train, _) in contenders.items():
            best = {x: final(train(problem, x, TUNED_ON, length(name))) for x in settings}
            chosen[name] = min(best, key=best.get)
            console.print(f"{task}: {name}: {chosen[name]} of {best}")
        curves: dict[str, list[Curve]] = {name: [] for name in contenders}
        for seed in range(FIRST_SEED, FIRST_SEED + args.num_seeds):
            for name, (_, train, _) in contenders.items():
                curves[name].append(train(problem, chosen[name], seed, length(name)))
        rows[task] = {
            name: {"setting": chosen[name], **describe(curves[name], curves["Adam"])}
            for name in contenders
        }
    others = {
        name: version(name)
        for name in ("scikit-learn", "kfac-jax")
        if any(distributions(name=name))
    }
    report = {
        "command": " ".join(
            ["python3 -m uv run", "experiments/benchmarks/natural_gradient.py", *words]
        ),
        "rows": rows,
        **provenance("CartPole-v1"),
    }
    report["versions"] |= {x: version(x) for x in others if any(distributions(name=x))}
    write_json(folder / "natural_gradient.json", report)
    write_whole(folder / "natural_gradient.md", "\n".join(table_lines(report)) + "\n")
    write_whole(folder / "natural_gradient.png", file_of(draw(rows), "png", 110))
    console.print(f"Table: {folder / 'natural_gradient.md'}")
    return 0


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--num-seeds", type=int, default=5, metavar="N", help="number of seeds (default: 5)")
    help_text = "train for this share of the steps; use less than 1 for a quick try (default: 1)"
    add("--share", type=float, default=1.0, metavar="X", help=help_text)
    help_text = "output folder; it must be new or empty (default: runs/natural_gradient)"
    default = Path("runs/natural_gradient")
    add("--out", type=Path, default=default, metavar="FOLDER", help=help_text)
    return parser


def final(curve: Curve) -> float:
    """Returns the lowest loss of a curve; infinity if the last loss is not finite."""
    loss = np.min(curve.losses)
    return float(loss) if np.isfinite(curve.losses[-1]) else np.inf


def describe(curves: list[Curve], references: list[Curve]) -> dict[str, Any]:
    """Returns a summary of the curves of all seeds, as JSON data.

    Args:
        curves: one curve for each seed.
        references: the curves of Adam with the same seeds. The lowest loss of Adam is the goal.
    """
    reached = []
    for curve, reference in zip(curves, references, strict=True):
        below = np.flatnonzero(curve.losses <= np.min(reference.losses))
        reached.append((curve.steps[below[0]], curve.seconds[below[0]]) if below.size else None)
    return {
        "best": [final(curve) for curve in curves],
        "total": [[curve.steps[-1], curve.seconds[-1]] for curve in curves],
        "reached": reached,
        "curves": [[x.tolist() for x in curve] for curve in curves],
    }


def table_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of natural_gradient.md."""
    yield from ("```", report["command"], "```", "")
    yield (
        "| problem | optimiser | setting | lowest loss | steps | seconds "
        "| steps to Adam's lowest loss | seconds to Adam's lowest loss | seeds that reach it |"
    )
    yield "| --- | --- | --- " + "| ---: " * 6 + "|"
    for task, rows in report["rows"].items():
        for name, row in rows.items():
            reached = [x for x in row["reached"] if x is not None]
            steps, seconds = (median(x) for x in zip(*row["total"], strict=True))
            cells = [task, name, str(row["setting"]), f"{median(row['best']):.4g}"]
            cells += [f"{steps:,.0f}", f"{seconds:.1f}"]
            most = len(reached) > len(row["reached"]) / 2
            medians = [median(x) for x in zip(*reached, strict=True)] if most else None
            cells += [f"{medians[0]:,.0f}", f"{medians[1]:.2f}"] if medians else ["", ""]
            yield "| " + " | ".join([*cells, f"{len(reached)} of {len(row['reached'])}"]) + " |"
    yield ""
    yield from provenance_lines([report])


def draw(rows: dict[str, Any]) -> Figure:
    """Returns a figure of the losses of all seeds, over steps and over seconds."""
    figure = Figure(figsize=(9, 3.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey="row")
    for pair, (task, found) in zip(axes, rows.items(), strict=True):
        for (name, row), color in zip(found.items(), COLORS, strict=False):
            for i, (steps, seconds, losses) in enumerate(row["curves"]):
                for ax, x in zip(pair, (steps, seconds), strict=True):
                    label = name if i == 0 else None
                    ax.plot(x[1:], losses[1:], color=color, alpha=0.7, label=label, linewidth=1)
        for ax, label in zip(pair, ("steps", "seconds"), strict=True):
            ax.set(xscale="log", yscale="log", xlabel=label, title=task)
            style(ax, grid="both")
        pair[0].set_ylabel("loss")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    sys.exit(main())
