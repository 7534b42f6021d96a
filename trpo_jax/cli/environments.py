"""Environments made from the flags of a command line."""

import argparse
from collections.abc import Mapping
from typing import Any

from trpo_jax import envs
from trpo_jax.cli.environment_flags import options_from
from trpo_jax.envs.base import Environment
from trpo_jax.envs.options import stored_options


def make_env(args: argparse.Namespace) -> Environment:
    """Returns the environment that the flags ask for."""
    return envs.make(args.env, **options_from(args)._asdict())


def make_stored(
    description: Mapping[str, Any], args: argparse.Namespace, processes: bool | None = None
) -> Environment:
    """Returns the environment of a stored run, or another environment if the flags name one.

    Without `--env`, the environment is made as it was for the run. Then `--env-arg` changes single
    arguments. `--wrapper` and `--cost` replace the wrappers and the costs of the run.

    Args:
        description: the contents of `config.json`.
        args: the parsed flags.
        processes: whether the copies run in processes; None means as in the run.

    Raises:
        ConfigurationError: if the environment cannot be made.
    """
    given = options_from(args)
    if args.env is not None:
        return envs.make(args.env, **given._asdict())
    stored = stored_options(description)
    options = envs.Options(
        {**stored.args, **given.args},
        given.wrappers or stored.wrappers,
        stored.processes if processes is None else processes,
        stored.timeout if given.timeout is None else given.timeout,
        given.costs or stored.costs,
    )
    return envs.make(description["env"], **options._asdict())
