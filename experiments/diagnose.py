"""Runs `trpo-jax diagnose`; `--help` explains every flag."""

from trpo_jax.cli.main import run

if __name__ == "__main__":
    run("diagnose")
