"""Draws one page about the policy steps of a run, and prints warnings if something is wrong."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from trpo_jax.analysis.diagnosis import RunWarning, describe, find_warnings
from trpo_jax.analysis.diagnosis_costs import cost_notes
from trpo_jax.cli.command_line import user_errors
from trpo_jax.cli.diagnose_flags import parse
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.figures.curves import Figure, file_of
from trpo_jax.figures.diagnosis import diagnosis, headline
from trpo_jax.records.files import make_parents, write_whole
from trpo_jax.records.runs import StoredRun, find_runs, read_run

DESCRIBED = ("env", "algorithm", "total_steps", "config")  # in config.json
DPI = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    with user_errors(StorageFailure):
        args = parse(sys.argv[1:] if argv is None else argv)
        run = read_run(the_run_in(args.folder), DESCRIBED, ("env_steps",))
        found = find_warnings(run)
        paths = write_pages(diagnosis(run, found), args.out or run.folder)
    print_warnings(console, run, found)
    console.print(f"Pages: {paths[0]}, {paths[1]}")
    return 0


def the_run_in(folder: Path) -> Path:
    """Returns the folder of the one run in a folder.

    Raises:
        ConfigurationError: if there is no run, or more than one.
    """
    found = find_runs([folder])
    if folder in found:
        return folder
    if len(found) > 1:
        raise ConfigurationError(
            f"{folder} holds {len(found)} runs, and a page shows one. Name one of them: "
            f"{', '.join(map(str, found))}."
        )
    return found[0]


def write_pages(page: Figure, folder: Path) -> list[Path]:
    """Writes a page as PDF and as PNG, and returns the paths of both files.

    Raises:
        ConfigurationError: if the folder cannot be made.
        StorageFailure: if a file cannot be written.
    """
    paths = [folder / "diagnosis.pdf", folder / "diagnosis.png"]
    make_parents(paths[0])
    for path in paths:
        write_whole(path, file_of(page, path.suffix[1:], DPI))
    return paths


def print_warnings(console: Console, run: StoredRun, found: Sequence[RunWarning]) -> None:
    """Prints the warnings about a run, and how its costs compare with their limits."""
    console.print(", ".join(headline(run)))
    if not found:
        console.print("No warnings.")
    for warning in found:
        console.print(f"  [bold]{warning.name}[/bold]: {describe(warning)}")
    for note in cost_notes(run):
        console.print(note)
