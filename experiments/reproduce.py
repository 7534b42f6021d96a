"""Makes tables and figures of results again, beside other libraries and published numbers.

`experiments/reproduce.toml` describes the benchmarks. After an interruption, run the same command
again. It keeps the finished tasks and resumes the unfinished one. `--tasks` runs only some tasks.
The table always shows all finished tasks. `--publish` adds the tasks to the table of
`experiments/results`, which keeps its other tasks. `--redraw` makes the tables and figures of
`experiments/results` from the numbers there and the texts of `reproduce.toml`, without a run.
"""

import json
import shlex
import subprocess
import sys
import tomllib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import limits
import peers
import returns_table
from rich.console import Console

from trpo_jax.cli.command_line import Parser, cache_compilations, user_errors
from trpo_jax.cli.compare import Pair, execute, refuse_other_settings
from trpo_jax.cli.main import end_in_order
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.errors import ConfigurationError, StorageFailure, unknown_name
from trpo_jax.figures.curves import file_of
from trpo_jax.records.files import locked, write_whole

HERE = Path(__file__).parent
BENCHMARKS_FILE = HERE / "reproduce.toml"
RESULTS = HERE / "results"
SCRIPTS = "scripts"  # the table of reproduce.toml with the commands of other benchmarks


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    started, failed = False, False
    try:
        with user_errors(StorageFailure):
            args = build_parser().parse_args(argv)
            benchmarks = tomllib.loads(BENCHMARKS_FILE.read_text())
            scripts = benchmarks.pop(SCRIPTS, {})
            names = [*benchmarks, *scripts] if args.all else args.benchmark
            for name in names:
                if name not in benchmarks | scripts:
                    raise unknown_name("benchmark", name, benchmarks | scripts)
            several = args.all or len(names) > 1 or names[0] in scripts
            if several and (args.tasks or args.out):
                raise ConfigurationError(
                    "--tasks and --out need one benchmark with tasks. Choose one of "
                    f"{', '.join(benchmarks)}."
                )
            if args.redraw:
                for name in (x for x in names if x in benchmarks):
                    redraw(benchmarks[name], name, console)
                return 0
            cache_compilations()
            for name in names:
                started = True
                if name in scripts:
                    failed |= run_commands(scripts[name])
                else:
                    failed |= run(benchmarks[name], name, args, console)
    except KeyboardInterrupt:
        goes_on = "To continue, run the same command." if started else "Nothing was written."
        print(f"Interrupted. {goes_on}", file=sys.stderr)
        return 130
    return 1 if failed else 0


def build_parser() -> Parser:
    """Returns the parser of the command line."""
    about = __doc__.split("\n\n")[0]
    parser = Parser(prog="experiments/reproduce.py", description=about, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    help_text = "names of benchmarks in experiments/reproduce.toml"
    which.add_argument("--benchmark", nargs="+", default=[], metavar="NAME", help=help_text)
    help_text = "run every benchmark, one after another; this takes days on a few CPU cores"
    which.add_argument("--all", action="store_true", help=help_text)
    add = parser.add_argument
    help_text = "run only these tasks of the benchmark (default: all)"
    add("--tasks", nargs="+", metavar="TASK", help=help_text)
    help_text = "output folder; finished runs in it are kept (default: runs/<benchmark>)"
    add("--out", type=Path, metavar="FOLDER", help=help_text)
    add("--no-peers", action="store_true", help="do not run the other libraries")
    after = parser.add_mutually_exclusive_group()
    help_text = "add the finished tasks to the table of experiments/results"
    after.add_argument("--publish", action="store_true", help=help_text)
    help_text = "write the tables and figures of experiments/results again, from the numbers there"
    after.add_argument("--redraw", action="store_true", help=help_text)
    return parser


def redraw(benchmark: dict[str, Any], name: str, console: Console) -> None:
    """Writes the table and figure of `experiments/results` again, from the numbers there."""
    if name in (found := reports()):
        report = heading(benchmark, name) | {"rows": found[name]["rows"]}
        console.print(f"Table: {write_files(report, name, RESULTS)}")
    else:
        console.print(f"{name} has no report with curves. Run --benchmark {name} without --redraw.")


def run(benchmark: dict[str, Any], name: str, args: Namespace, console: Console) -> bool:
    """Runs the unfinished tasks of a benchmark, writes its files, and returns if one failed."""
    chosen = args.tasks or list(benchmark["tasks"])
    for task in chosen:
        if task not in benchmark["tasks"]:
            raise unknown_name(f"task of {name}", task, benchmark["tasks"])
    folder = args.out or Path("runs", name)
    runs = plan(benchmark, folder)
    own = [(task, run) for of_method in runs.values() for task, run in of_method.items()]
    wanted = [run for task, run in own if task in chosen]
    others = peers.plan(benchmark, list(benchmark["tasks"]), folder)
    for pair in wanted:
        plan_of(pair.argv)  # refuses wrong settings before anything runs
    refuse_other_settings([x for task, x in own if task in chosen or x.is_finished()])
    with locked(folder):
        failed = execute(wanted, console)
        if not args.no_peers:
            failed |= peers.execute([x for x in others if x.task in chosen], console)
        report = describe(benchmark, name, runs, others)
        table = write_files(report, name, folder)
        if args.publish:
            table = write_files(with_published(report, name), name, RESULTS)
    console.print(f"Table: {table}")
    return failed


def run_commands(commands: Sequence[tuple[str, str]]) -> bool:
    """Runs the commands whose result does not exist, and returns if one failed.

    Args:
        commands: pairs of the file that a command writes at its end, and the command.
    """
    failed = False
    for result, command in commands:
        if not Path(result).is_file():
            failed |= subprocess.run(shlex.split(command), check=False).returncode != 0
    return failed


def plan(benchmark: dict[str, Any], folder: Path) -> dict[str, dict[str, Pair]]:
    """Returns the run of each method on each task."""
    return {
        method: {
            task: plan_run(benchmark, method, task, folder)
            for task, settings in benchmark["tasks"].items()
            if method in settings.get("methods", [method])
        }
        for method in benchmark["methods"]
    }


def plan_run(benchmark: dict[str, Any], method: str, task: str, folder: Path) -> Pair:
    """Returns the run of a method on a task."""
    settings = benchmark["tasks"][task]
    label = f"{task}, {method}"
    folder = folder / label.replace(", ", "-").replace(" ", "-")
    argv = ["--env", settings["env"], *benchmark["flags"], *settings.get("flags", [])]
    argv += [*benchmark["methods"][method], "--out", str(folder)]
    return Pair(label, settings["env"], folder, tuple(argv), None)


def describe(
    benchmark: dict[str, Any],
    name: str,
    runs: dict[str, dict[str, Pair]],
    others: Sequence[peers.PeerRun],
) -> dict[str, Any]:
    """Returns the report of a benchmark: everything that its table and its figure show."""
    if "limit" in benchmark:
        rows = limits.describe(benchmark, runs)
    else:
        rows = {**returns_table.describe(runs), **peers.read(others)}
    return heading(benchmark, name) | {"rows": rows}


def heading(benchmark: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the report of a benchmark without its rows."""
    left_out = ("extras", "flags", "methods", "peers")
    settings = {key: x for key, x in benchmark.items() if key not in left_out}
    extras = "".join(f" --extra {extra}" for extra in benchmark["extras"])
    command = f"python3 -m uv run{extras} experiments/reproduce.py --benchmark {name}"
    return {**settings, "command": command}


def with_published(report: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a report with the rows of `experiments/results` for the tasks that it lacks."""
    published = reports().get(name, {"rows": {}})["rows"]
    rows = {}
    for method, found in report["rows"].items():
        known = published.get(method, {}) | found
        rows[method] = {task: known[task] for task in report["tasks"] if task in known}
    return report | {"rows": rows}


def write_files(report: dict[str, Any], name: str, folder: Path) -> Path:
    """Writes the report of a benchmark, its table and its figure. Returns the file of the table."""
    form = limits if "limit" in report else returns_table
    write_whole(folder / f"{name}.json", as_text(report) + "\n")
    table, lines = folder / f"{name}.md", [*form.table_lines(report)]
    if any(report["rows"].values()):
        write_whole(folder / f"{name}.png", file_of(form.figure(report), "png", 110))
        lines += ["", f"![Learning curves]({name}.png)"]
    write_whole(table, "\n".join(lines) + "\n")
    return table


def reports() -> dict[str, dict[str, Any]]:
    """Returns the reports of `experiments/results` whose table can be drawn again, by name."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    return {name: x for name, x in found.items() if x.get("rows") and is_complete(x)}


def is_complete(report: dict[str, Any]) -> bool:
    """Returns whether each row of a report has its curve. Those before version 0.11 have none."""
    of_methods = report["rows"].values()
    return all(isinstance(row, dict) and "curve" in row for x in of_methods for row in x.values())


def as_text(data: Any, depth: int = 0) -> str:
    """Returns data as JSON with one line for each list, so that curves stay compact."""
    if not isinstance(data, dict) or not data:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    indent = "  " * (depth + 1)
    lines = [f"{indent}{json.dumps(key)}: {as_text(x, depth + 1)}" for key, x in data.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"


if __name__ == "__main__":
    end_in_order(lambda: main)
