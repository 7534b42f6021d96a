"""Where a script runs: on how many devices, and in how many processes."""

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import jax

from trpo_jax import algorithms
from trpo_jax.cli.command_line import Parser
from trpo_jax.cli.environments import make_env
from trpo_jax.cli.process_flags import SEEDS, add_process_flags
from trpo_jax.cli.streams import outlive_readers
from trpo_jax.devices import Placement, choose_devices, split_environments, split_runs
from trpo_jax.errors import ConfigurationError
from trpo_jax.processes import is_first, join, leave
from trpo_jax.running.task import require_on_device

IF_LOST = "If another process ends early, JAX may abort this process with a stack trace."
FIRST_LEAVES_AFTER = 2.0  # seconds


def join_processes(words: Sequence[str]) -> None:
    """Joins the other processes of the run, if the command line has `--distributed`.

    Raises:
        ConfigurationError: if flags contradict each other, or the other processes are not found.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    add_process_flags(parser)
    args = parser.parse_known_args(words)[0]
    places = {
        "--coordinator": args.coordinator,
        "--process-id": args.process_id,
        "--num-processes": args.num_processes,
    }
    given = [flag for flag, value in places.items() if value is not None]
    missing = ", ".join(flag for flag in places if flag not in given)
    if given and not args.distributed:
        raise ConfigurationError(
            f"{given[0]} has no effect without --distributed. Add --distributed, or remove it."
        )
    if given and missing:
        raise ConfigurationError(
            f"{', '.join(given)} without {missing}: give all three flags, or none of them."
        )
    if given and not re.fullmatch(r".+:\d+", args.coordinator):
        raise ConfigurationError(
            f"--coordinator {args.coordinator} must be a host and a port, such as localhost:7654."
        )
    if given and not 0 <= args.process_id < args.num_processes:
        raise ConfigurationError(
            f"process_id = {args.process_id} must be at least 0 and less than num_processes = "
            f"{args.num_processes}."
        )
    if args.distributed and any(word.split("=")[0] == "--devices" for word in words):
        raise ConfigurationError(
            "--devices and --distributed exclude each other: each process takes all of its "
            "devices. Remove --devices. To hide devices from a process, set CUDA_VISIBLE_DEVICES "
            "for instance."
        )
    if not args.distributed or {"-h", "--help"} & set(words):
        return
    try:
        join(args.coordinator, args.process_id, args.num_processes)
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The processes of this run cannot find each other ({error}). Start it under Slurm, "
            "Open MPI or on Cloud TPU, or give --coordinator HOST:PORT --num-processes N "
            "--process-id K, with each K from 0 to N - 1 exactly once."
        ) from error


def exit_with(main: Callable[[], int], received: Sequence[int] = ()) -> NoReturn:
    """Runs a script and exits with its exit code.

    The script does all its work even if nobody reads its output. A process that fails does not wait
    for the other processes of the run, as JAX would. The end of the first process ends all others,
    so the first process leaves them some time to print their messages.

    Args:
        main: the script, which returns its exit code.
        received: the signals that stopped the script as Ctrl-C.
    """
    outlive_readers()
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    if code == 130 and received:
        code = 128 + received[0]
    if code and jax.distributed.is_initialized():
        code = code if isinstance(code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(RuntimeError):  # the first process may be gone
            leave(code)
        if is_first():
            time.sleep(FIRST_LEAVES_AFTER)
        os._exit(code)
    sys.exit(code)


def devices_of(args: argparse.Namespace) -> list[jax.Device]:
    """Returns the devices that the flags ask for.

    Raises:
        ConfigurationError: if there are not so many devices, or there is more than one and the
            environment runs on the host.
    """
    devices = choose_devices(None if args.distributed else args.devices)
    if len(devices) > 1 or args.distributed:
        require_on_device(make_env(args), "Several devices share")
    return devices


def place_runs(args: argparse.Namespace) -> Placement | None:
    """Returns the placement that splits whole runs over devices, or None for one device.

    If the flags ask for all devices, an environment on the host still takes one device.
    """
    any_number = args.devices is None and not args.distributed
    if any_number and len(choose_devices(None)) > 1 and make_env(args).open is not None:
        return None
    devices = devices_of(args)
    return split_runs(devices) if len(devices) > 1 else None


def place(args: argparse.Namespace, config: Any) -> Placement | None:
    """Returns the placement that splits seeds or their environments, or None for one device.

    Raises:
        ConfigurationError: if there are not so many devices, or their shares would differ.
    """
    devices = devices_of(args)
    if len(devices) == 1:
        return None
    if args.shard == SEEDS:
        require_even_shares("num_seeds", args.num_seeds, len(devices))
        return split_runs(devices)
    require_even_shares("num_envs", config.num_envs, len(devices))
    return split_environments(devices, algorithms.get(args.algorithm).make(make_env(args), config))


def require_even_shares(name: str, number: int, num_devices: int) -> None:
    """Raises a ConfigurationError if a number cannot be split evenly over the devices."""
    if number % num_devices:
        below = number // num_devices * num_devices
        fitting = " or ".join(str(n) for n in (below, below + num_devices) if n)
        raise ConfigurationError(
            f"{name} = {number} cannot be split evenly over {num_devices} devices. Choose a "
            f"multiple of {num_devices}, such as --{name.replace('_', '-')} {fitting}, or a number "
            f"of devices that divides {number}."
        )
