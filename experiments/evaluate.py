"""Runs `trpo-jax evaluate`; `--help` explains every flag."""

import sys

from trpo_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
