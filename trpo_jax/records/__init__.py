"""What a run leaves on disk: files, logs, checkpoints and policies, written and read back."""
