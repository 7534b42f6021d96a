"""Runs `trpo-jax`, as `python -m trpo_jax`."""

from trpo_jax.cli.main import main

if __name__ == "__main__":
    main()
