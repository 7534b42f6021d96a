"""Runs `trpo-jax render`; `--help` explains every flag."""

from trpo_jax.cli.main import run

if __name__ == "__main__":
    run("render")
