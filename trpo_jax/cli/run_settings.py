"""The settings of a run of train.py: its command line, checked, and its description."""

import argparse
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

import trpo_jax
from trpo_jax import algorithms, envs
from trpo_jax.algorithms.base import Algorithm
from trpo_jax.cli.command_line import (
    Parser,
    add_config_flags,
    add_name_flags,
    command_name,
    config_from,
    config_to_dict,
    first_pass,
    flags_in,
    require_at_least,
    seed_range,
    step_count,
)
from trpo_jax.cli.placement import (
    ENVIRONMENTS,
    SEEDS,
    add_process_flags,
    describe_placement,
    place,
    without_process_flags,
)
from trpo_jax.devices import Placement
from trpo_jax.envs.base import Environment
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.records.logs import SERVICES, require_service
from trpo_jax.records.runs import DESCRIPTION
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.loop import choose_chunk

# Of a description: what may differ on resuming.
NOT_SETTINGS = ("command", "device", "placement", "started")


class Run(NamedTuple):
    """A run whose settings were checked.

    Attributes:
        args: its flags.
        env: its environment.
        config: its hyperparameters.
        algorithm: its algorithm.
        seeds: its seeds.
        num_updates: updates of each seed.
        updates_per_chunk: updates between two looks of the host.
        folder: where its files go.
        description: what `config.json` says of it.
        placement: which devices it is on; the default one if None.
    """

    args: argparse.Namespace
    env: Environment
    config: Any
    algorithm: Algorithm
    seeds: tuple[int, ...]
    num_updates: int
    updates_per_chunk: int
    folder: Path
    description: dict[str, Any]
    placement: Placement | None


def prepare(argv: Sequence[str] | None = None) -> Run:
    """Parses and checks everything that can be checked before compilation; writes nothing.

    Raises:
        ConfigurationError: if a setting cannot work.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    resumed = first_pass(words, resume=None).resume
    if resumed is not None:
        words = [*stored_command(Path(resumed)), *words]
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
    module = algorithms.get(first.algorithm)
    args = build_parser(module, first).parse_args(words)
    env = envs.make(args.env, args.env_processes)
    config = config_from(args, module)
    algorithm = module.make(env, config)
    num_updates = args.total_steps // algorithm.steps_per_update
    if num_updates < 1:
        raise ConfigurationError(
            f"total_steps = {args.total_steps:,} is less than one batch, which takes "
            f"{algorithm.steps_per_update:,} steps of the environment. Raise --total-steps or "
            "collect less in an update, by --num-envs or --num-steps for instance."
        )
    require_at_least(
        args,
        num_seeds=1,
        evaluation_episodes=1,
        keep_checkpoints=1,
        eval_every=0,
        checkpoint_every=0,
    )
    if args.resume is not None and args.out is not None:
        raise ConfigurationError(
            f"--out {args.out} and --resume {args.resume} name two folders. A resumed run goes on "
            "in its own: leave --out away."
        )
    for service in args.log:
        require_service(service)
    seeds = seed_range(args.seed, args.num_seeds)
    placement = place(args, env, module, config, algorithm)
    intervals = [every for every in (args.eval_every, args.checkpoint_every) if every]
    time_name = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    run = Run(
        args,
        env,
        config,
        algorithm,
        seeds,
        num_updates,
        choose_chunk(num_updates, *intervals),
        args.resume
        or args.out
        or Path("runs", envs.folder_of(args.env), args.algorithm, time_name),
        describe(args, config, words) | {"placement": describe_placement(placement, args.shard)},
        placement,
    )
    if args.resume is not None:
        refuse_other_settings(run)
    return run


def build_parser(module: ModuleType, first: argparse.Namespace) -> Parser:
    """Returns the parser whose defaults are those of the chosen algorithm and environment."""
    defaults = defaults_for(first.algorithm, first.env)
    parser = Parser(
        prog=command_name("train"),
        description="Trains an algorithm on an environment, several seeds in one program, and "
        "writes what happened. Without a flag: TRPO on CartPole-v1.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_name_flags(parser)
    add("--seed", default=0, type=int, metavar="N", help="the first seed (default: 0)")
    total_steps, num_seeds = defaults["total_steps"], defaults["num_seeds"]
    help_text = f"number of seeds, trained side by side (default: {num_seeds})"
    add("--num-seeds", default=num_seeds, type=int, metavar="N", help=help_text)
    help_text = (
        f"environment steps of each seed, rounded down to whole updates (default: {total_steps:,})"
    )
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    processes = defaults["env_processes"]
    help_text = (
        "run each environment of gym/ in a process of its own: faster where a step takes a "
        f"millisecond or more (default: {processes})"
    )
    action = argparse.BooleanOptionalAction
    add("--env-processes", default=processes, action=action, help=help_text)
    episodes = defaults["evaluation_episodes"]
    help_text = f"episodes of each seed that its final policy is judged by (default: {episodes})"
    add("--evaluation-episodes", default=episodes, type=int, metavar="N", help=help_text)
    help_text = (
        "judge the policies by as many episodes during training too, before the first and after "
        "every N-th update; the best ones are kept as a checkpoint (default: 0, only in the end)"
    )
    add("--eval-every", default=0, type=int, metavar="N", help=help_text)
    help_text = (
        "save the whole state after every N-th update; 0 never (default: as often as costs no "
        "more than 3 %% of the time)"
    )
    add("--checkpoint-every", type=int, metavar="N", help=help_text)
    help_text = "checkpoints kept beside the best, the latest ones (default: 3)"
    add("--keep-checkpoints", default=3, type=int, metavar="N", help=help_text)
    help_text = (
        "go on with the run in FOLDER after its latest checkpoint, with its own settings, as if "
        "it had never stopped"
    )
    add("--resume", type=Path, metavar="FOLDER", help=help_text)
    help_text = f"write to more than metrics.csv: {', '.join(SERVICES)}, with commas between"
    add("--log", type=services, default=(), metavar="NAMES", help=help_text)
    help_text = "output folder, new or empty (default: runs/<env>/<algorithm>/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    add("--quiet", action="store_true", help="print errors only")
    add_process_flags(parser, devices="1")
    help_text = (
        "what is split over several devices: seeds, each of which is whole on its device, or the "
        "environments of every seed, for runs that one device is too small for (default: seeds)"
    )
    parser.add_argument("--shard", choices=(SEEDS, ENVIRONMENTS), default=SEEDS, help=help_text)
    add_config_flags(parser, module, defaults)
    return parser


def services(text: str) -> tuple[str, ...]:
    """Returns the names in a list with commas between, each of which has to be known."""
    names = tuple(text.split(","))
    for name in names:
        if name not in SERVICES:
            raise argparse.ArgumentTypeError(str(unknown_name("log", name, SERVICES)))
    return names


def describe(args: argparse.Namespace, config: Any, words: Sequence[str]) -> dict[str, Any]:
    """Returns everything needed to run it again, as JSON gives it back."""
    run_fields = ("env", "algorithm", "seed", "num_seeds", "total_steps", "evaluation_episodes")
    run_fields += ("eval_every", "checkpoint_every", "env_processes")
    return as_json(
        {
            "command": [*command_name("train").split(), *words],
            **{name: getattr(args, name) for name in run_fields},
            "config": config_to_dict(config),
            **provenance(args.env),
        }
    )


def provenance(env: str) -> dict[str, Any]:
    """Returns versions, device and time, of what runs on an environment."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", *envs.packages_of(env))
    return {
        "versions": {
            "trpo_jax": trpo_jax.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages if is_installed(package)},
        },
        "device": {"platform": device.platform, "kind": device.device_kind},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def as_json(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a dictionary as JSON gives it back."""
    return json.loads(json.dumps(data))


def is_installed(package: str) -> bool:
    """Says whether a package is there: not every environment of a suite needs all of its own."""
    return bool(list(distributions(name=package)))


def stored_command(folder: Path) -> list[str]:
    """Returns the flags that the run in a folder was started with, but its folder and devices.

    Raises:
        ConfigurationError: if there is no such run.
    """
    words = flags_in(stored_description(folder)["command"])
    parser = Parser(add_help=False, allow_abbrev=False)
    for flag in ("--out", "--shard"):
        parser.add_argument(flag)
    return without_process_flags(parser.parse_known_args(words)[1])


def stored_description(folder: Path) -> dict[str, Any]:
    """Returns the description of the run in a folder.

    Raises:
        ConfigurationError: if there is none.
    """
    try:
        return json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"There is no run in {folder}: its {DESCRIPTION} cannot be read ({error})."
        ) from error


def stored_algorithm(description: dict[str, Any], env: Environment) -> Algorithm:
    """Returns the algorithm of a stored run, on an environment."""
    module = algorithms.get(description["algorithm"])
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["config"].items()
    }
    return module.make(env, module.Config(**values))


def refuse_other_settings(run: Run) -> None:
    """Raises a ConfigurationError if a run is finished, or was started with other settings."""
    if (run.folder / "summary.json").is_file():
        raise ConfigurationError(
            f"The run in {run.folder} is finished: its {run.num_updates:,} updates are done, and "
            "summary.json says what came of them."
        )
    stored = stored_description(run.folder)
    different = differences(settings(run.description), settings(stored))
    if different:
        raise ConfigurationError(
            f"The run in {run.folder} has {different}. It can only go on as it was: leave other "
            "flags away, and install those versions (python3 -m uv run --with jax==... for "
            "instance). To start anew, use its own command: "
            f"{shlex.join(stored['command'])}"
        )


def settings(description: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides the numbers of a run, from its description, in one dictionary."""
    chosen = {name: x for name, x in description.items() if name not in NOT_SETTINGS}
    return {**chosen.pop("config", {}), **chosen.pop("versions", {}), **chosen}


def differences(asked: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns in words where two dictionaries differ, or nothing."""
    names = [name for name in asked | found if asked.get(name) != found.get(name)]
    return ", ".join(f"{x} = {found.get(x)!r}, not {asked.get(x)!r}" for x in names)
