"""The arguments of `trpo_jax.train` that the flags of train.py stand for."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trpo_jax import envs
from trpo_jax.cli.command_line import Follows, config_from, seed_range, time_name
from trpo_jax.cli.environment_flags import options_from
from trpo_jax.cli.placement import place
from trpo_jax.cli.train_flags import parse
from trpo_jax.errors import ConfigurationError
from trpo_jax.processes import decided_by_first
from trpo_jax.records.runs import read_description
from trpo_jax.running.plan import RunPlan, plan_run

RUN_FLAGS = ("total_steps", "evaluation_episodes", "env_processes", "eval_every")
RUN_FLAGS += ("checkpoint_every", "keep_checkpoints", "log", "evaluation_steps", "init_from")
RUN_FLAGS += ("stop_at_return",)


def parse_run(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Returns the parsed flags of a command line, and the arguments of `trpo_jax.train` for them.

    Raises:
        ConfigurationError: if a flag cannot work.
    """
    args = parse(words)
    if args.resume is not None and args.out is not None:
        raise ConfigurationError(
            f"--out {args.out} and --resume {args.resume} name two folders. A resumed run keeps "
            "its own folder. Remove --out."
        )
    if args.resume is not None:  # a run that is made longer keeps its schedules
        begun = read_description(args.resume, "config")["config"]
        followed = [name for name, x in vars(args).items() if isinstance(x, Follows)]
        vars(args).update({name: begun[name] for name in followed if name in begun})
    config = config_from(args)
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
        "out": Path(decided_by_first(lambda: str(folder))),  # the clocks of processes differ
        "resume": args.resume is not None,
        "placement": place(args, config),
    }
    return args, settings


def plan_of(words: Sequence[str]) -> RunPlan:
    """Returns the plan of the run that a command line of train.py describes; writes nothing.

    Raises:
        ConfigurationError: if a setting cannot work.
    """
    return plan_run(**parse_run(words)[1])
