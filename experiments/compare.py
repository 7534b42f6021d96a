"""Runs `trpo-jax compare`; `--help` explains every flag."""

import sys

from trpo_jax.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
