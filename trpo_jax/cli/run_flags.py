"""The flags of train.py, and the run that they ask for."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trpo_jax import algorithms, envs
from trpo_jax.cli.command_line import (
    Follows,
    Parser,
    add_config_flags,
    add_name_flags,
    command_name,
    config_from,
    first_pass,
    flags_in,
    seed_range,
    step_count,
    time_name,
)
from trpo_jax.cli.environment_flags import (
    add_environment_flags,
    add_processes_flag,
    options_from,
)
from trpo_jax.cli.placement import (
    ENVIRONMENTS,
    SEEDS,
    add_process_flags,
    place,
    without_process_flags,
)
from trpo_jax.errors import ConfigurationError, unknown_name
from trpo_jax.processes import decided_by_first
from trpo_jax.records.logs import SERVICES
from trpo_jax.records.runs import read_description
from trpo_jax.running.defaults import defaults_for
from trpo_jax.running.plan import STOP_EVERY, RunPlan, plan_run

RUN_FLAGS = ("total_steps", "evaluation_episodes", "env_processes", "eval_every")
RUN_FLAGS += ("checkpoint_every", "keep_checkpoints", "log", "evaluation_steps", "init_from")
RUN_FLAGS += ("stop_at_return",)


def parse_run(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the flags of a command line, and what they ask `trpo_jax.train` for.

    Raises:
        ConfigurationError: if a flag cannot work.
    """
    resumed = first_pass(words, resume=None).resume
    if resumed is not None:
        words = [*stored_flags(Path(resumed)), *words]
    first = first_pass(words, env="CartPole-v1", algorithm="trpo")
    module = algorithms.get(first.algorithm)
    args = build_parser(module, first).parse_args(words)
    if args.resume is not None and args.out is not None:
        raise ConfigurationError(
            f"--out {args.out} and --resume {args.resume} name two folders. A resumed run goes on "
            "in its own: leave --out away."
        )
    if resumed is not None:  # a run that goes on for longer keeps its schedules
        begun = read_description(Path(resumed), "config")["config"]
        followed = [name for name, x in vars(args).items() if isinstance(x, Follows)]
        vars(args).update({name: begun[name] for name in followed if name in begun})
    config = config_from(args, module)
    usual = Path("runs", envs.folder_of(args.env), args.algorithm, time_name())
    folder = args.resume or args.out or usual
    settings = {name: getattr(args, name) for name in RUN_FLAGS}
    options = options_from(args)
    settings |= {"env_args": options.args, "wrappers": options.wrappers}
    settings |= {"env_timeout": options.timeout, "costs": options.costs}
    settings["schedules"] = dict(args.schedule)
    settings |= {
        "env": args.env,
        "algorithm": args.algorithm,
        "config": config,
        "seeds": seed_range(args.seed, args.num_seeds),
        "out": Path(decided_by_first(lambda: str(folder))),  # the processes have several clocks
        "resume": args.resume is not None,
        "placement": place(args, module, config),
    }
    return args, settings


def plan_of(words: Sequence[str]) -> RunPlan:
    """Returns the plan of the run that a command line of train.py asks for; writes nothing.

    Raises:
        ConfigurationError: if a setting cannot work.
    """
    return plan_run(**parse_run(words)[1])


def stored_flags(folder: Path) -> list[str]:
    """Returns the flags that start the run in a folder again, without its folder and devices.

    Raises:
        ConfigurationError: if there is no such run, or no flags can start it.
    """
    command = read_description(folder, "command")["command"]
    if command is None:
        raise ConfigurationError(
            f"The run in {folder} was started from Python, with something of its own that no flag "
            "names. It goes on from there: the same call of trpo_jax.train, with resume=True."
        )
    parser = Parser(add_help=False, allow_abbrev=False)
    for flag in ("--out", "--shard"):
        parser.add_argument(flag)
    return without_process_flags(parser.parse_known_args(flags_in(command))[1])


def build_parser(module: ModuleType, first: argparse.Namespace) -> Parser:
    """Returns the parser whose defaults are those of the chosen algorithm and environment."""
    defaults = defaults_for(first.algorithm, first.env)
    parser = Parser(
        prog=command_name("train"),
        usage="%(prog)s [FLAG ...]",
        description="Trains an algorithm on an environment, several seeds in one program, and "
        "writes what happened. Without a flag: TRPO on CartPole-v1.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("what is trained")
    add_name_flags(group)
    add = group.add_argument
    add("--seed", default=0, type=int, metavar="N", help="the first seed (default: 0)")
    total_steps, num_seeds = defaults["total_steps"], defaults["num_seeds"]
    help_text = f"number of seeds, trained side by side (default: {num_seeds})"
    add("--num-seeds", default=num_seeds, type=int, metavar="N", help=help_text)
    help_text = (
        f"environment steps of each seed, rounded down to whole updates (default: {total_steps:,})"
    )
    add("--total-steps", default=total_steps, type=step_count, metavar="N", help=help_text)
    add_processes_flag(group, defaults["env_processes"])
    add_environment_flags(group)
    help_text = (
        "start every seed from what the best seed of the finished run in FOLDER has learnt: its "
        "policy, its critic and its statistics; a seed that keeps its limits on costs comes first"
    )
    add("--init-from", type=Path, metavar="FOLDER", help=help_text)
    help_text = (
        "end the run once the mean return of the latest 20 training episodes, or a few more, is at "
        f"least X for each seed; looked at after every {STOP_EVERY}th update"
    )
    add("--stop-at-return", type=float, metavar="X", help=help_text)
    add = parser.add_argument_group("evaluation").add_argument
    episodes = defaults["evaluation_episodes"]
    help_text = f"episodes of each seed that its final policy is judged by (default: {episodes})"
    add("--evaluation-episodes", default=episodes, type=int, metavar="N", help=help_text)
    help_text = (
        "judge the policies by as many episodes during training too, before the first and after "
        "every N-th update; the best ones within limits on costs are kept as a checkpoint "
        "(default: 0, only in the end)"
    )
    add("--eval-every", default=0, type=int, metavar="N", help=help_text)
    help_text = (
        "steps of an evaluation episode at the most (default: the time limit of the environment, "
        "or without one 100,000 on the device and 1,000 on the host)"
    )
    add("--evaluation-steps", type=int, metavar="N", help=help_text)
    add = parser.add_argument_group("checkpoints and files").add_argument
    help_text = (
        "save the whole state after every N-th update; 0 never (default: as often as costs no "
        "more than 3 %% of the time)"
    )
    add("--checkpoint-every", type=int, metavar="N", help=help_text)
    help_text = "checkpoints kept beside the best, the latest ones (default: 3)"
    add("--keep-checkpoints", default=3, type=int, metavar="N", help=help_text)
    help_text = (
        "go on with the run in FOLDER after its latest checkpoint, with its own settings, as if "
        "it had never stopped; a larger --total-steps makes it longer, also if it is finished"
    )
    add("--resume", type=Path, metavar="FOLDER", help=help_text)
    help_text = f"write to more than metrics.csv: {', '.join(SERVICES)}, with commas between"
    add("--log", type=services, default=(), metavar="NAMES", help=help_text)
    help_text = "output folder, new or empty (default: runs/<env>/<algorithm>/<time>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    add("--quiet", action="store_true", help="print errors only")
    where = add_process_flags(parser, devices="1")
    help_text = (
        "what is split over several devices: seeds, each of which is whole on its device, or the "
        "environments of every seed, for runs that one device is too small for (default: seeds)"
    )
    where.add_argument("--shard", choices=(SEEDS, ENVIRONMENTS), default=SEEDS, help=help_text)
    add_config_flags(parser, module, defaults)
    group = parser.add_argument_group("schedules of hyperparameters")
    help_text = (
        "let a real-valued hyperparameter change: max_kl=linear:0.02:0.005, also exponential, "
        "cosine, and piecewise:0.02:50000:0.01; over the whole run, or over the steps of each seed "
        "that a third number says; the flag may be given several times"
    )
    kind = {"action": "append", "default": [], "type": schedule}
    group.add_argument("--schedule", **kind, metavar="NAME=KIND:START:END", help=help_text)
    return parser


def schedule(text: str) -> tuple[str, str]:
    """Returns the name of a hyperparameter and its schedule in NAME=SCHEDULE."""
    name, equals, described = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=SCHEDULE")
    return name.strip().replace("-", "_"), described


def services(text: str) -> tuple[str, ...]:
    """Returns the names in a list with commas between, each of which has to be known."""
    names = tuple(text.split(","))
    for name in names:
        if name not in SERVICES:
            raise argparse.ArgumentTypeError(str(unknown_name("log", name, SERVICES)))
    return names
