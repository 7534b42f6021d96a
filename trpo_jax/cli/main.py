"""The command `trpo-jax`. It passes its arguments to one of the commands in this folder."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NoReturn

import trpo_jax
from trpo_jax.cli.command_line import user_errors
from trpo_jax.cli.streams import outlive_readers
from trpo_jax.errors import unknown_name

COLLECT_AFTER = 100_000  # new objects; collecting garbage more often takes a sixth of tracing
AGAIN_AFTER = 0.05  # seconds until a signal that Python has ignored is sent again
COMMANDS = {
    "train": "train an algorithm on an environment, with several seeds in one program",
    "sweep": "try many values of hyperparameters, in as few compiled programs as possible",
    "evaluate": "play fresh episodes with the policies of a run, and print their returns",
    "plot": "draw the learning curves of many runs, and compare their scores",
    "diagnose": "draw a page about the policy steps of a run, and print warnings",
    "compare": "train several algorithms on several environments, and write one table",
    "render": "play an episode with the policy of a run, and write it as a GIF or an MP4",
}
HELP = f"""usage: trpo-jax COMMAND ...

Trust-region policy optimisation in JAX.

commands:
{"".join(f"  {name:<10}{text}" + chr(10) for name, text in COMMANDS.items())}
options:
  -h, --help  show this help
  --version   show the version

"trpo-jax COMMAND --help" explains every flag of a command.
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the first argument names, and exits with its exit code."""
    outlive_readers()
    command, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        sys.exit(0)
    if command == "--version":
        print(f"trpo-jax {trpo_jax.__version__}")
        sys.exit(0)
    if command not in COMMANDS:
        print(f"error: {unknown_name('command', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    run(command, words)


def run(command: str, words: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with its exit code.

    Args:
        command: a name in `COMMANDS`.
        words: the arguments of the command; None for the arguments of this process.
    """
    words = sys.argv[1:] if words is None else words

    def load():
        with user_errors():  # `--help` and wrong flags end here, before the slow imports
            import_module(f"trpo_jax.cli.{command}_flags").parse(words)
        return partial(import_module(f"trpo_jax.cli.{command}").main, words)

    end_in_order(load)


def end_in_order(load: Callable[[], Callable[[], int]]) -> NoReturn:
    """Runs a script and exits with its exit code.

    SIGTERM and SIGHUP stop the script in the same way as Ctrl-C. The exit code then names the
    signal.

    Args:
        load: imports the script. It returns the function that runs the script and returns its exit
            code.
    """
    outlive_readers()
    gc.set_threshold(COLLECT_AFTER)
    received: list[int] = []
    loading = True

    def interrupt(number, frame):
        if loading:  # imports may hide Ctrl-C, and there is no work yet that could be lost
            print("Interrupted.", file=sys.stderr, flush=True)
            os._exit(128 + number)
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if not received:  # a terminal that closes may send it twice
            received.append(number)
            raise KeyboardInterrupt

    def ignored(unraisable):
        """Sends a signal again that Python ignored because it came during garbage collection."""
        if unraisable.exc_type is KeyboardInterrupt:
            number = received.pop() if received else signal.SIGINT
            threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), number)).start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, ignored
    usual = (signal.SIG_DFL, signal.default_int_handler)  # nohup and & ignore signals: keep that
    numbers = [getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler in usual}
    for number in before:
        signal.signal(number, interrupt)
    try:
        main = load()
        from trpo_jax.cli.placement import exit_with  # imports jax

        loading = False
        exit_with(main, received)
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
