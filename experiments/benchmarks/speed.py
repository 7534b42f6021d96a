"""Measures the speed of the library: its goals, its pieces, whole training, and other libraries.

Calls that are compared take turns, so a busy machine slows all of them equally. A time is the
median over turns. A ratio is the median of the ratios of all turns. Times leave out compilation,
except where a table says otherwise.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import speed_accelerator as accelerator
import speed_growth as growth
import speed_memory as memory
import speed_peers as peers
import speed_pieces as pieces
import speed_profile as profile
import speed_solvers as solvers
import speed_training as training
import speed_versions as versions
from rich.console import Console
from speed_report import Report, draw, table_lines

import trpo_jax
from trpo_jax import envs
from trpo_jax.algorithms import trpo
from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.files import create_run_folder, write_json

PEER_PYTHON = Path("runs", "peers", "bin", "python")
BATCHES = (2_048, 65_536)
NUM_ENVS = {"cpu": (8, 64, 512, 4_096), "gpu": (256, 1_024, 4_096, 16_384)}
NUM_SEEDS = {"cpu": (1, 4, 16, 64), "gpu": (1, 16, 256, 1_024)}
MINATAR = {"num_steps": 16, "hidden_sizes": (128,), "activation": "relu"}
TASKS = {  # (environment, settings, package that it needs)
    "cpu": (("CartPole-v1", {"num_steps": 128}, "gymnax"),),
    "gpu": (
        ("CartPole-v1", {"num_steps": 128}, "gymnax"),
        ("Breakout-MinAtar", MINATAR, "gymnax"),
        ("brax/ant", {"num_steps": 16}, "brax"),
    ),
}
PEER_TASKS = (  # (environment of this library, further settings, environment of Gymnasium)
    ("CartPole-v1", {}, "CartPole-v1"),
    ("CartPole-v1", peers.A_QUARTER, "CartPole-v1"),
    ("gym/Hopper-v5", {}, "Hopper-v5"),
    ("envpool/Hopper-v4", {}, "Hopper-v5"),
)
DEFAULT_PARTS = {
    "cpu": (
        *("goals", "profile", "peers", "growth", "solvers"),
        *("training", "reach", "memory", "pieces"),
    ),
    "gpu": ("accelerator", "update", "pieces", "training", "memory"),
}
MINUTES = {"cpu": 60.0, "gpu": 8.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        args = build_parser().parse_args(argv)
        check(args)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's Python keeps compiled modules
        time_name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
        folder = create_run_folder(args.out or Path("runs", "benchmark", time_name))
    try:
        for report in measure(args, argv, console):  # each report has one more part
            write_json(folder / "speed.json", report)
            lines = "\n".join(table_lines(report))
            (folder / "speed.md").write_text(lines + "\n")
            if figure := draw(report):
                figure.savefig(folder / "speed.png", dpi=110)
    except KeyboardInterrupt:
        print(f"Interrupted. {folder} keeps the parts that were finished.", file=sys.stderr)
        return 130
    console.print(lines)
    return 0


def check(args: argparse.Namespace) -> None:
    """Checks the flags and chooses the device.

    Raises:
        ConfigurationError: if this machine cannot measure what the flags ask for.
    """
    args.parts = args.parts or DEFAULT_PARTS[args.device]
    args.minutes = args.minutes or MINUTES[args.device]
    if args.repeats < 1:
        raise ConfigurationError(f"repeats = {args.repeats} must be at least 1.")
    if "peers" in args.parts and not args.peer_python.exists():
        raise ConfigurationError(
            f"peer_python = {args.peer_python} does not exist. sb3-contrib needs an environment of "
            f"its own; make one by\n{peers.INSTALL}\nor leave peers out of --parts."
        )
    names = [name for name, *_ in PEER_TASKS] if "peers" in args.parts else []
    names += [name for name, _ in solvers.TASKS] if "solvers" in args.parts else []
    for name in names:
        envs.make(name)
    if "goals" in args.parts:
        versions.require_host_tasks()
        if args.old is not None:
            versions.require_commit(args.old)
    try:
        (device, *_) = jax.devices(args.device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"device = {args.device!r}: JAX finds no such device ({error}). Choose cpu, or install "
            "JAX with support for this device."
        ) from error
    jax.config.update("jax_default_device", device)


def measure(
    args: argparse.Namespace, argv: Sequence[str] | None, console: Console
) -> Iterator[Report]:
    """Yields the report after each part. It contains all parts measured so far."""
    device, flags = jax.devices(args.device)[0], sys.argv[1:] if argv is None else argv
    report: Report = {
        "command": shlex.join(["experiments/benchmarks/speed.py", *flags]),
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
    args.deadline = time.monotonic() + 60 * args.minutes
    for part in args.parts:
        if time.monotonic() > args.deadline:
            console.print(f"{part}: left out, because {args.minutes:g} minutes are over")
            continue
        for found in MEASURES[part](args, console):
            report[part] = found
            yield report


def measure_goals(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the measurements that have goals, of an old version and of this version."""
    console.print("goals")
    yield versions.measure(args.old, args.repeats)


def measure_accelerator(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the measurements that have goals on a GPU, one more each time."""
    rows: list[Report] = []
    for row in accelerator.measure_goals(args.device, args.deadline):
        console.print(f"accelerator: {row['what']}: {row['new']}")
        rows.append(row)
        yield rows


def measure_update(args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yields where the time of an update goes, and if tests and resuming work on the device."""
    report: Report = {"parts": []}
    for row in accelerator.measure_parts(args.device, args.deadline):
        console.print(f"update: parts of an update, {row['num_seeds']} seeds")
        report["parts"].append(row)
        yield report
    if time.monotonic() < args.deadline:
        console.print("update: tests of the mathematics")
        report |= accelerator.run_tests()
        yield report
    if time.monotonic() < args.deadline:
        console.print("update: resume on a CPU")
        yield report | {"resumed": accelerator.resume_on_cpu()}


def measure_profile(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the time of each kind of kernel in a Fisher-vector product."""
    console.print("profile")
    yield profile.measure()


def measure_pieces(args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yields the speed of matrix products, and the cost of the pieces of an update."""
    precisions = {"float32": ("float32", "highest")}
    if args.device == "gpu":
        precisions |= {"TF32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", "default")}
    rates = {
        name: pieces.matmul_flops_per_second(args.repeats, *what)
        for name, what in precisions.items()
    }
    rows: list[Report] = []
    for net in pieces.nets():
        for batch_size in BATCHES:
            if time.monotonic() < args.deadline:
                console.print(f"pieces: {net.name}, batch {batch_size:,}")
                rows += pieces.measure(net, batch_size, args.repeats)
                yield {"matmul_flops_per_second": rates, "rows": rows}


def measure_growth(args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yields the seconds of a policy's step for several batch sizes and numbers of iterations."""
    console.print("growth")
    yield growth.measure(args.repeats)


def measure_solvers(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the cost and the residual of each solver."""
    rows: list[Report] = []
    for env_name, settings in solvers.TASKS:
        console.print(f"solvers: {env_name}")
        rows += solvers.measure(env_name, settings, args.repeats)
        yield rows


def measure_training(args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yields steps per second for several numbers of environments and seeds, and beside PPO."""
    environments: list[Report] = []
    for env_name, settings, package in TASKS[args.device]:
        if find_spec(package):
            console.print(f"training: {env_name}, over environments")
            counts = NUM_ENVS[args.device]
            environments += training.over_environments(env_name, counts, settings, args.repeats)
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config())
    seeds = []
    for num_seeds in NUM_SEEDS[args.device]:
        console.print(f"training: {num_seeds} seeds")
        seeds.append(training.over_seeds(algorithm, num_seeds, args.repeats))
    console.print("training: beside PPO")
    ppo = [training.beside_ppo(num_seeds, args.repeats) for num_seeds in NUM_SEEDS["cpu"][::2]]
    yield {"environments": environments, "seeds": seeds, "ppo": ppo}


def measure_memory(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the speed and the space of policies with a memory."""
    console.print("memory")
    yield memory.measure(args.repeats)


def measure_reach(args: argparse.Namespace, console: Console) -> Iterator[list[Report]]:
    """Yields the seconds until many seeds in one program reach a CartPole return of 475."""
    algorithm = trpo.make(envs.make("CartPole-v1"), trpo.Config(**peers.A_QUARTER))
    rows: list[Report] = []
    for num_seeds in NUM_SEEDS[args.device]:
        console.print(f"reach: {num_seeds} seeds")
        rows.append(training.seeds_to_return(algorithm, num_seeds))
    yield rows


def measure_peers(args: argparse.Namespace, console: Console) -> Iterator[Report]:
    """Yields the speed of the same work, and the seconds to a return, beside sb3-contrib."""
    speed = []
    for env_name, settings, peer_env in PEER_TASKS:
        console.print(f"peers: {env_name} beside sb3-contrib")
        speed.append(
            peers.speed_beside_sb3(args.peer_python, env_name, settings, peer_env, args.repeats)
        )
    console.print("peers: seconds to a return of 475")
    yield {
        "speed": speed,
        "update": peers.seconds_of_an_update(args.repeats),
        "reach": peers.seconds_to_return(args.peer_python, range(args.repeats)),
    }


MEASURES = {
    "goals": measure_goals,
    "accelerator": measure_accelerator,
    "update": measure_update,
    "profile": measure_profile,
    "pieces": measure_pieces,
    "growth": measure_growth,
    "solvers": measure_solvers,
    "training": measure_training,
    "memory": measure_memory,
    "reach": measure_reach,
    "peers": measure_peers,
}


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    listed = "; on a ".join(f"{kind}: {' '.join(parts)}" for kind, parts in DEFAULT_PARTS.items())
    help_text = "what to measure; goals and solvers need EnvPool, peers needs EnvPool, "
    help_text += f"Gymnasium with MuJoCo and sb3-contrib (default: on a {listed})"
    add("--parts", nargs="+", choices=MEASURES, help=help_text)
    help_text = "commit of an older version, which is measured in turns with this version"
    add("--old", metavar="COMMIT", help=help_text)
    help_text = "minutes after which no measurement starts (default: 60 on a cpu, 8 on a gpu)"
    add("--minutes", type=float, metavar="N", help=help_text)
    add("--device", default="cpu", choices=("cpu", "gpu"), help="device to measure (default: cpu)")
    add(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="number of turns of each call (default: 5)",
    )
    help_text = f"Python interpreter that has sb3-contrib (default: {PEER_PYTHON})"
    add("--peer-python", type=Path, default=PEER_PYTHON, metavar="FILE", help=help_text)
    help_text = "output folder; it must be new or empty (default: runs/benchmark/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
