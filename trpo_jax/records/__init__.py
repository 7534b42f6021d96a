"""The files of a run: metrics, logs, checkpoints and policies, written and read back."""
