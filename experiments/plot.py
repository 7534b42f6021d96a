"""Runs `trpo-jax plot`; `--help` explains every flag."""

from trpo_jax.cli.main import run

if __name__ == "__main__":
    run("plot")
