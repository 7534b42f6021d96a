"""The command line: flags, progress and the commands."""
