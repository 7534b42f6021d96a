"""Runs `trpo-jax diagnose`; `--help` explains every flag."""

from trpo_jax.cli.diagnose import main
from trpo_jax.cli.placement import exit_with

if __name__ == "__main__":
    exit_with(main)
