"""Plays one episode with the policy of a finished run, and writes it as a GIF."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# No screen or loudspeaker is needed; a user's own settings come first.
HEADLESS = {"SDL_VIDEODRIVER": "offscreen", "SDL_AUDIODRIVER": "dummy"}
if sys.platform == "linux":
    HEADLESS["MUJOCO_GL"] = "egl"
for variable, value in HEADLESS.items():
    os.environ.setdefault(variable, value)

from rich.console import Console

from trpo_jax.cli.command_line import Parser, cache_compilations, command_name, user_errors
from trpo_jax.cli.environment_flags import add_environment_flags, make_stored
from trpo_jax.errors import ConfigurationError, EnvironmentFailure, StorageFailure
from trpo_jax.records.files import make_parents
from trpo_jax.records.policies import load_policy
from trpo_jax.records.runs import read_description
from trpo_jax.running.animation import MAX_FPS, play, write_gif


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(EnvironmentFailure, StorageFailure):
        args = build_parser().parse_args(argv)
        env = make_stored(read_description(args.folder, "env"), args, processes=False)
        act = load_policy(args.folder / "policy.msgpack", args.seed, env)
        if min(args.steps, args.every, args.fps, args.width) <= 0:
            raise ConfigurationError("--steps, --every, --fps and --width must be more than 0.")
        if args.fps > MAX_FPS:
            raise ConfigurationError(
                f"--fps {args.fps:g} is more than the {MAX_FPS} that a GIF can play."
            )
        out = args.out or args.folder / "episode.gif"
        if out.suffix != ".gif":
            raise ConfigurationError(f"--out {out} must be a .gif.")
        if out.exists():
            raise ConfigurationError(f"{out} exists, and will not be overwritten. Choose --out.")
        make_parents(out)
        cache_compilations()
        frames, total_reward = play(env, act, args.episode, args.steps, args.every)
        write_gif(out, frames, width=args.width, fps=args.fps)
    size = out.stat().st_size / 1000
    console.print(f"Return {total_reward:.1f} in {len(frames)} frames: {out} ({size:,.0f} kB)")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = Parser(prog=command_name("render"), description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, help="of a run")
    help_text = "whose policy (default: that with the best evaluation)"
    add("--seed", type=int, metavar="N", help=help_text)
    help_text = "another environment with the same observations and actions"
    add("--env", metavar="NAME", help=help_text)
    add_environment_flags(parser)
    add("--episode", type=int, default=0, metavar="N", help="decides the episode (default: 0)")
    help_text = "steps at the most (default: 1000)"
    add("--steps", type=int, default=1000, metavar="N", help=help_text)
    help_text = "steps from one frame to the next (default: 1)"
    add("--every", type=int, default=1, metavar="N", help=help_text)
    add("--fps", type=float, default=30, metavar="X", help="frames a second (default: 30)")
    add("--width", type=int, default=320, metavar="N", help="in pixels (default: 320)")
    help_text = "the file, a new one (default: episode.gif in the folder)"
    add("--out", type=Path, metavar="FILE", help=help_text)
    return parser
