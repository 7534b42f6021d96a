"""Runs `trpo-jax plot`; `--help` explains every flag."""

from trpo_jax.cli.placement import exit_with
from trpo_jax.cli.plot import main

if __name__ == "__main__":
    exit_with(main)
