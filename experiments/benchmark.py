"""Measures how fast the library is: its pieces, whole training, and the same work beside others.

What is compared takes turns, so that a busy machine slows all of it alike; figures are medians, and
ratios the medians of the ratios of all turns. Compilation is not counted but where that is said.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import benchmark_peers as peers
import benchmark_pieces as pieces
import benchmark_training as training
import jax
import numpy as np
from command_line import Parser, user_errors
from rich.console import Console

import trpo_jax
from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.errors import ConfigurationError
from trpo_jax.training.files import create_run_folder, write_json

PARTS = ("pieces", "training", "peers")
PEER_PYTHON = Path("runs", "peers", "bin", "python")
BATCHES = (2_048, 65_536)
NUM_ENVS = {"cpu": (8, 64, 512, 4_096), "gpu": (256, 1_024, 4_096, 16_384)}
NUM_SEEDS = {"cpu": (1, 4, 16, 64), "gpu": (1, 16, 256, 1_024)}
Report = dict[str, Any]
PEER_TASKS = (
    ("CartPole-v1", "CartPole-v1"),
    ("gym/Hopper-v5", "Hopper-v5"),
    ("envpool/Hopper-v4", "Hopper-v5"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        args = build_parser().parse_args(argv)
        check(args)
        time_name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = create_run_folder(args.out or Path("runs", "benchmark", time_name))
    try:
        for report in measure(args, argv, console):  # one that has a part more each time
            write_json(folder / "speed.json", report)
            lines = "\n".join(table_lines(report))
            (folder / "speed.md").write_text(lines + "\n")
    except KeyboardInterrupt:
        print(f"Interrupted. {folder} keeps the parts that were finished.", file=sys.stderr)
        return 130
    console.print(lines)
    return 0


def check(args: argparse.Namespace) -> None:
    """Checks what the flags ask for, and chooses the device.

    Raises:
        ConfigurationError: if it cannot be measured here.
    """
    if args.repeats < 1:
        raise ConfigurationError(f"repeats = {args.repeats} must be at least 1.")
    if "peers" in args.parts and not args.peer_python.exists():
        raise ConfigurationError(
            f"peer_python = {args.peer_python} does not exist. sb3-contrib needs an environment of "
            f"its own; make one by\n{peers.INSTALL}\nor leave peers out of --parts."
        )
    if "peers" in args.parts:
        for env_name, _ in PEER_TASKS:
            envs.make(env_name)
    try:
        (device, *_) = jax.devices(args.device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device = {args.device!r}: JAX finds none ({error}). Choose cpu, or install JAX with "
            "support for it."
        ) from error
    jax.config.update("jax_default_device", device)


def measure(
    args: argparse.Namespace, argv: Sequence[str] | None, console: Console
) -> Iterator[Report]:
    """Yields all that was measured, after each part."""
    device, flags = jax.devices(args.device)[0], sys.argv[1:] if argv is None else argv
    report: Report = {
        "command": shlex.join(["experiments/benchmark.py", *flags]),
        "repeats": args.repeats,
        "versions": {
            "trpo_jax": trpo_jax.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("jax", "jaxlib", "flax", "numpy")},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "cores": os.cpu_count(),
        },
    }
    for part in args.parts:
        report[part] = MEASURES[part](args, console)
        yield report


def measure_pieces(args: argparse.Namespace, console: Console) -> Report:
    """Returns the rates of matrix products, and the cost of the pieces of an update."""
    precisions = {"float32": ("float32", "highest")}
    if args.device == "gpu":
        precisions |= {"TF32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", "default")}
    rates = {
        name: pieces.matmul_flops_per_second(args.repeats, *what)
        for name, what in precisions.items()
    }
    rows = []
    for net in pieces.nets():
        for batch_size in BATCHES:
            console.print(f"pieces: {net.name}, batch {batch_size:,}")
            rows += pieces.measure(net, batch_size, args.repeats)
    return {"matmul_flops_per_second": rates, "rows": rows}


def measure_training(args: argparse.Namespace, console: Console) -> Report:
    """Returns steps per second over environments and over seeds."""
    console.print("training: over environments")
    environments = training.over_environments(
        "CartPole-v1", NUM_ENVS[args.device], {"num_steps": 128}, args.repeats
    )
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config())
    seeds = []
    for num_seeds in NUM_SEEDS[args.device]:
        console.print(f"training: {num_seeds} seeds")
        seeds.append(training.over_seeds(algorithm, num_seeds, args.repeats))
    return {"environments": environments, "seeds": seeds}


def measure_peers(args: argparse.Namespace, console: Console) -> Report:
    """Returns the same work beside sb3-contrib and PPO."""
    speed = []
    for env_name, peer_env in PEER_TASKS:
        console.print(f"peers: {env_name} beside sb3-contrib")
        speed.append(peers.speed_beside_sb3(args.peer_python, env_name, peer_env, args.repeats))
    console.print("peers: seconds to a return of 475")
    reach = peers.seconds_to_return(args.peer_python, range(args.repeats))
    console.print("peers: PPO")
    ppo = [peers.beside_ppo(num_seeds, args.repeats) for num_seeds in (1, 16)]
    return {"speed": speed, "reach": reach, "ppo": ppo}


MEASURES = {"pieces": measure_pieces, "training": measure_training, "peers": measure_peers}


def table_lines(report: Report) -> Iterator[str]:
    """Yields the lines of the Markdown file."""
    yield "# How fast trpo_jax is"
    yield ""
    yield f"```\npython3 -m uv run {report['command']}\n```"
    for part in PARTS:
        if part in report:
            yield ""
            yield from TABLES[part](report[part])
    yield ""
    yield "Versions: " + ", ".join(f"{name} {text}" for name, text in report["versions"].items())
    device = report["device"]
    yield f"Device: {device['kind']}, {device['cores']} cores"


def pieces_table(part: Report) -> Iterator[str]:
    """Yields the tables of pieces: gradients of each, and operations per second."""
    by_piece: dict[str, list[Report]] = {}
    for row in part["rows"]:
        by_piece.setdefault(row["piece"], []).append(row)
    nets = [f"{row['net']}, {row['batch']:,}" for row in by_piece["gradient"]]
    rates = part["matmul_flops_per_second"]
    milliseconds = [f"{1e3 * row['seconds']:.2f}" for row in by_piece["gradient"]]
    yield "## Pieces of an update, in policy gradients on the same batch"
    yield from table(
        ["piece", *nets],
        *(
            [piece, *(f"{row['gradients']:.2f}" for row in rows)]
            for piece, rows in by_piece.items()
        ),
        ["*milliseconds of a gradient*", *milliseconds],
    )
    yield ""
    yield "Operations per second, as a share of a large matrix product's:"
    yield from table(
        ["piece", *nets],
        *(
            [piece, *(f"{row['flops_per_second'] / max(rates.values()):.0%}" for row in rows)]
            for piece, rows in by_piece.items()
            if rows[0]["flops_per_second"] is not None
        ),
    )
    yield ""
    yield "Matrix product of 2,048 x 2,048: " + ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()
    )


def training_table(part: Report) -> Iterator[str]:
    """Yields the tables over environments and over seeds."""
    yield "## Steps per second of training"
    yield from table(
        ["environments", "task", "training", "environments alone", "share"],
        *(
            [
                thousands(row["num_envs"]),
                row["env"],
                thousands(row["training"]),
                thousands(row["alone"]),
                f"{row['share']:.0%}",
            ]
            for row in part["environments"]
        ),
    )
    yield from table(
        ["seeds", "vmap", "map", "batched map", "MB a seed"],
        *(
            [thousands(row[name]) for name in ("num_seeds", "vmap", "map", "batched map")]
            + [f"{row['bytes_per_seed'] / 1e6:.1f}"]
            for row in part["seeds"]
        ),
    )


def peers_table(part: Report) -> Iterator[str]:
    """Yields the tables beside sb3-contrib and PPO."""
    yield "## The same work beside others"
    yield from table(
        ["task", "sb3-contrib's", "its steps/s", "ours", "ratio"],
        *(
            [
                row["env"],
                row["peer_env"],
                thousands(row["peer"]),
                thousands(row["own"]),
                f"{row['ratio']:.1f}",
            ]
            for row in part["speed"]
        ),
    )
    yield from table(
        ["seconds to a CartPole return of 475", "median", "each seed"],
        *(
            [name, f"{np.median(seconds):.1f}", ", ".join(f"{x:.1f}" for x in seconds)]
            for name, seconds in part["reach"].items()
        ),
    )
    yield from table(
        ["seeds", "PPO, steps/s", "TRPO, steps/s", "ratio"],
        *(
            [thousands(row[name]) for name in ("num_seeds", "ppo", "trpo")]
            + [f"{row['ratio']:.2f}"]
            for row in part["ppo"]
        ),
    )


TABLES = {"pieces": pieces_table, "training": training_table, "peers": peers_table}


def table(head: Sequence[str], *rows: Sequence[str]) -> Iterator[str]:
    """Yields the lines of a table whose first column is of text, after an empty one."""
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "| --- " + "| ---: " * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def thousands(value: float) -> str:
    """Returns a number rounded to a whole one."""
    return f"{value:,.0f}"


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    help_text = f"what to measure (default: {' '.join(PARTS)})"
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help=help_text)
    add("--device", default="cpu", choices=("cpu", "gpu"), help="where (default: cpu)")
    add("--repeats", type=int, default=5, metavar="N", help="turns of each (default: 5)")
    help_text = f"an interpreter that has sb3-contrib (default: {PEER_PYTHON})"
    add("--peer-python", type=Path, default=PEER_PYTHON, metavar="FILE", help=help_text)
    help_text = "output folder, new or empty (default: runs/benchmark/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
