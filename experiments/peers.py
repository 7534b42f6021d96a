"""Runs other libraries on the tasks of a benchmark, and reads their returns."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from trpo_jax.records.files import write_whole

SCRIPT = Path(__file__).parent / "benchmarks" / "peer_returns.py"
# Each library has an environment of its own, because their dependencies exclude each other's.
PACKAGES = {
    "sb3-contrib": ("sb3-contrib==2.9.2", "envpool==1.2.5"),
    "tianshou": ("tianshou==2.0.1", "envpool==1.2.5"),
    "cross-entropy": ("envpool==1.2.5",),
}


class PeerRun(NamedTuple):
    """The training of one seed of another library on one task, and the file of its returns."""

    library: str
    task: str
    name: str
    seed: int
    steps: int
    path: Path

    def command(self) -> list[str]:
        """Returns the command that trains, and prints the returns as JSON."""
        packages = [word for package in PACKAGES[self.library] for word in ("--with", package)]
        call = ["python3", "-m", "uv", "run", "--no-project", *packages, "python", str(SCRIPT)]
        options = ["--task", self.name, "--seed", str(self.seed), "--steps", str(self.steps)]
        return [*call, self.library, *options]


def plan(benchmark: dict[str, Any], tasks: Sequence[str], folder: Path) -> list[PeerRun]:
    """Returns the runs of all libraries of a benchmark, those of the first seeds first."""
    settings = benchmark.get("peers", {})
    return [
        PeerRun(
            library,
            task,
            benchmark["tasks"][task]["env"].partition("/")[2],
            seed,
            int(float(settings["steps"])),
            folder / "peers" / library / f"{task}-{seed}.json",
        )
        for seed in settings.get("seeds", ())
        for library in settings.get("libraries", ())
        for task in tasks
        if benchmark["tasks"][task].get("peers", True)
    ]


def execute(runs: Sequence[PeerRun], console: Console) -> bool:
    """Trains every run whose file is missing, and returns whether one failed."""
    failed = False
    for number, run in enumerate(runs, start=1):
        name = f"{run.name:<24} {run.library:<12} seed {run.seed}"
        if run.path.is_file():
            continue
        run.path.parent.mkdir(parents=True, exist_ok=True)
        with console.status(f"{name} ({number} of {len(runs)})"):
            done = subprocess.run(run.command(), capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            console.print(f"{name} failed: {last}")
            failed = True
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        write_whole(run.path, json.dumps(found) + "\n")
        mean = sum(found["returns"]) / len(found["returns"])
        console.print(f"{name} return {mean:10.1f} {found['seconds']:9.1f} s")
    return failed


def read(runs: Sequence[PeerRun]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the results of the finished runs, by library and task.

    A library without a finished run has no tasks.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {f"{run.library}, run here": {} for run in runs}
    for run in (x for x in runs if x.path.is_file()):
        seed = json.loads(run.path.read_text())
        of_library = found[f"{run.library}, run here"]
        row = of_library.setdefault(run.task, {"per_seed": [], "curve": [], "seeds": []})
        row |= {"steps": seed["steps"], "versions": seed["versions"]}
        row["episodes_per_seed"] = len(seed["returns"])
        row["per_seed"].append(round(sum(seed["returns"]) / len(seed["returns"]), 3))
        row["curve"].append(seed["curve"])
        row["seeds"].append(run.seed)
    return found
