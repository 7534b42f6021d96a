"""Makes the tables and the figure of `experiments/benchmarks/speed.py`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from trpo_jax.figures.curves import COLORS, Figure

Report = dict[str, Any]


def table_lines(report: Report) -> Iterator[str]:
    """Yields the lines of the Markdown file."""
    yield "# How fast trpo_jax is"
    yield ""
    yield f"```\npython3 -m uv run --extra envpool --extra gym {report['command']}\n```"
    yield ""
    yield (
        "Measurements that are compared take turns. A number is the median over turns, and a ratio "
        "is the median of the ratios of all turns. Times leave out compilation, except where a "
        "table says otherwise. [`speed-notes.md`](speed-notes.md) explains which parts of the "
        "library or of the machine limit the speed."
    )
    if "growth" in report or "training" in report:
        yield ""
        yield "![Cost of a step, and steps per second of training](speed.png)"
    for part in TABLES:
        if part in report:
            yield ""
            yield from TABLES[part](report[part])
    yield ""
    yield "Versions: " + ", ".join(f"{name} {text}" for name, text in report["versions"].items())
    device = report["device"]
    yield f"Device: {device['kind']}, {device['cores']} cores"


def goals_table(rows: list[Report]) -> Iterator[str]:
    """Yields the table of the measurements of an old and of this version, with their goals."""
    yield "## Goals"
    old = any(row.get("old") is not None for row in rows)
    anchors = any(row.get("anchor") for row in rows)
    head = ["measurement", *(["old version", "ratio, new / old"] if old else []), "this version"]
    head += ["goal", "reached", *(["to compare"] if anchors else [])]
    lines = []
    for row in rows:
        new = row["new"]
        cells = [row["what"]]
        if old:
            cells += [number(row["old"]), number(new / row["old"])]
        cells.append("not measured" if new is None else number(new))
        goal = row["goal"]
        if goal is None or new is None:
            cells += ["", ""]
        else:
            bound, at_least = goal
            reached = new >= bound if at_least else new <= bound
            words = "at least" if at_least else "at most"
            cells += [f"{words} {number(bound)}", "yes" if reached else "no"]
        lines.append(cells + ([row["anchor"]] if anchors else []))
    yield from table(head, *lines)


def number(value: float) -> str:
    """Returns a number as text: three digits, or all digits of a large number."""
    if value >= 1_000:
        return thousands(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def update_table(part: Report) -> Iterator[str]:
    """Yields the table of the parts of an update, and lines about tests and resuming."""
    yield "## Where the time of an update of CartPole goes"
    yield from table(
        ["seeds", "collect, ms", "policy, ms", "critic, ms", "compilation, s", "MB a seed"],
        *(
            [
                thousands(row["num_seeds"]),
                *(f"{1e3 * row[name]:.2f}" for name in ("collect", "policy", "critic")),
                f"{row['compilation']:.1f}",
                f"{row['bytes_per_seed'] / 1e6:.1f}",
            ]
            for row in part["parts"]
        ),
    )
    if "tests" in part:
        yield ""
        yield f"Tests of the mathematics on this device: {part['tests']}"
        for name in part["failed"]:
            yield f"- failed: `{name}`"
    if "resumed" in part:
        ends = ", ".join(f"{where} {how}" for where, how in part["resumed"].items())
        yield ""
        yield f"A run of this device, continued on a CPU: {ends}"


def profile_table(rows: list[Report]) -> Iterator[str]:
    """Yields the table of the kernels of a Fisher-vector product."""
    yield "## Kernels of a Fisher-vector product, 64 x 64, 2,048 states"
    yield from table(
        ["kind", "kernels", "microseconds of all together", "GFLOP/s"],
        *(
            [
                row["kind"],
                f"{row['kernels']:.0f}",
                f"{1e6 * row['seconds']:.0f}",
                f"{row['operations_per_second'] / 1e9:.0f}" if row["operations_per_second"] else "",
            ]
            for row in rows
        ),
    )


def pieces_table(part: Report) -> Iterator[str]:
    """Yields the tables of pieces: their cost in gradients, and their operations per second."""
    by_piece: dict[str, list[Report]] = {}
    for row in part["rows"]:
        by_piece.setdefault(row["piece"], []).append(row)
    nets = [f"{row['net']}, {row['batch']:,}" for row in by_piece["gradient"]]
    rates = part["matmul_flops_per_second"]
    milliseconds = [f"{1e3 * row['seconds']:.2f}" for row in by_piece["gradient"]]
    yield "## Pieces of an update, in policy gradients on the same batch"
    yield from table(
        ["piece", *nets],
        *(
            [piece, *(f"{row['gradients']:.2f}" for row in rows)]
            for piece, rows in by_piece.items()
        ),
        ["*milliseconds of a gradient*", *milliseconds],
    )
    yield ""
    yield "Operations per second, as a share of the speed of a large matrix product:"
    yield from table(
        ["piece", *nets],
        *(
            [piece, *(f"{row['flops_per_second'] / max(rates.values()):.0%}" for row in rows)]
            for piece, rows in by_piece.items()
            if rows[0]["flops_per_second"] is not None
        ),
    )
    yield ""
    yield "Matrix product of 2,048 x 2,048: " + ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()
    )


def training_table(part: Report) -> Iterator[str]:
    """Yields the tables of speed for several numbers of environments and of seeds."""
    yield "## Steps per second of training"
    yield from table(
        ["environments", "task", "training", "environments alone", "share"],
        *(
            [
                thousands(row["num_envs"]),
                row["env"],
                thousands(row["training"]),
                thousands(row["alone"]),
                f"{row['share']:.0%}",
            ]
            for row in part["environments"]
        ),
    )
    yield from table(
        ["seeds", "vmap", "map", "batched map", "MB a seed"],
        *(
            [thousands(row[name]) for name in ("num_seeds", "vmap", "map", "batched map")]
            + [f"{row['bytes_per_seed'] / 1e6:.1f}"]
            for row in part["seeds"]
        ),
    )
    names = list(part["ppo"][0]["ratios"])
    yield from table(
        ["seeds, beside PPO", *(f"{name}, steps/s" for name in names), *names[1:]],
        *(
            [thousands(row["num_seeds"])]
            + [thousands(row["steps_per_second"][name]) for name in names]
            + [f"{row['ratios'][name]:.2f}" for name in names[1:]]
            for row in part["ppo"]
        ),
    )


def memory_table(part: list[Report]) -> Iterator[str]:
    """Yields the table of policies with a memory: steps per second, and space."""
    yield "## Policies with a memory"
    yield from table(
        ["memory", "steps of a rollout", "steps/s", "kB an environment"],
        *(
            [
                row["memory"],
                thousands(row["num_steps"]),
                thousands(row["steps_per_second"]),
                f"{row['bytes_per_env'] / 1e3:,.0f}",
            ]
            for row in part
        ),
    )


def peers_table(part: Report) -> Iterator[str]:
    """Yields the tables that compare with sb3-contrib."""
    yield "## The same work beside sb3-contrib"
    yield from table(
        ["task", "other settings", "task of sb3-contrib", "its steps/s", "our steps/s", "ratio"],
        *(
            [
                row["env"],
                ", ".join(f"{name} {value}" for name, value in row["settings"].items()),
                row["peer_env"],
                thousands(row["peer"]),
                thousands(row["own"]),
                f"{row['ratio']:.1f}",
            ]
            for row in part["speed"]
        ),
    )
    yield ""
    yield "Milliseconds of the parts of an update of the first task: " + ", ".join(
        f"{name} {1e3 * seconds:.1f}" for name, seconds in part["update"].items()
    )
    parts = ("start", "compilation", "training")
    median = lambda rows, name: f"{np.median([row[name] for row in rows]):.1f}"
    yield from table(
        ["seconds to a CartPole return of 475", "median", *parts, "each seed"],
        *(
            [name, median(rows, "seconds")]
            + [median(rows, x) if x in rows[0] else "" for x in parts]
            + [", ".join(f"{row['seconds']:.1f}" for row in rows)]
            for name, rows in part["reach"].items()
        ),
    )


def growth_table(part: Report) -> Iterator[str]:
    """Yields the tables of the cost of a step for several batch sizes and numbers of iterations."""
    yield "## How the cost of a policy's step grows"
    for over, label in (("batch", "states of the batch"), ("cg_iters", "iterations of CG")):
        rows = part[over]
        yield from table(
            [label, *(thousands(row[over]) for row in rows)],
            ["milliseconds", *(f"{1e3 * row['seconds']:.1f}" for row in rows)],
        )


def solvers_table(part: list[Report]) -> Iterator[str]:
    """Yields the table of solvers."""
    yield "## Solvers, on policies after some training"
    yield from table(
        ["task", "parameters", "solver", "iterations", "milliseconds of an update", "residual"],
        *(
            [
                row["env"],
                thousands(row["parameters"]),
                row["solver"],
                str(row["cg_iters"]),
                f"{1e3 * row['seconds']:.1f}",
                f"{row['residual']:.0e}",
            ]
            for row in part
        ),
    )


def reach_table(part: list[Report]) -> Iterator[str]:
    """Yields the table of seconds to a return."""
    yield "## Seconds to a CartPole return of 475, of many seeds in one program"
    shown = lambda seconds: "never" if seconds is None else f"{seconds:.1f}"
    yield from table(
        ["seeds", "half of the seeds", "all seeds", "compilation before", "seeds that reached it"],
        *(
            [thousands(row["num_seeds"])]
            + [shown(row[name]) for name in ("half", "all", "compilation")]
            + [f"{row['reached']:.0%}"]
            for row in part
        ),
    )


TABLES = {
    "goals": goals_table,
    "accelerator": goals_table,
    "update": update_table,
    "profile": profile_table,
    "pieces": pieces_table,
    "growth": growth_table,
    "solvers": solvers_table,
    "training": training_table,
    "memory": memory_table,
    "reach": reach_table,
    "peers": peers_table,
}


def table(head: Sequence[str], *rows: Sequence[str]) -> Iterator[str]:
    """Yields an empty line, then the lines of a table. Its first column is text."""
    yield ""
    yield "| " + " | ".join(head) + " |"
    yield "| --- " + "| ---: " * (len(head) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def thousands(value: float) -> str:
    """Returns a number as text, rounded to an integer."""
    return f"{value:,.0f}"


def draw(report: Report) -> Figure | None:
    """Returns a figure of growth and training; None if the report has neither."""
    panels = []
    if "growth" in report:
        for over, label in (("batch", "states of the batch"), ("cg_iters", "iterations of CG")):
            panels.append((draw_growth, label, report["growth"][over], over))
    if "training" in report:
        environments, seeds = (report["training"][name] for name in ("environments", "seeds"))
        panels.append((draw_environments, "environments", environments, "num_envs"))
        panels.append((draw_seeds, "seeds", seeds, "num_seeds"))
    if not panels:
        return None
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (draw_on, x_label, rows, x_name) in zip(all_axes, panels, strict=True):
        draw_on(axes, rows, x_name)
        axes.set_xlabel(x_label)
        axes.xaxis.minorticks_off()
        axes.yaxis.minorticks_off()
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9")
    return figure


def draw_growth(axes: Axes, rows: Sequence[Report], over: str) -> None:
    """Draws the milliseconds of a step, and the straight line that fits them best."""
    x, y = np.array([(row[over], 1e3 * row["seconds"]) for row in rows]).T
    axes.plot(x, np.polyval(np.polyfit(x, y, 1), x), ":", color="0.5", label="a straight line")
    axes.plot(x, y, "o", color=COLORS[0], label="measured")
    axes.set(xlim=(0, None), ylim=(0, None), ylabel="milliseconds of a policy's step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False)


def draw_environments(axes: Axes, rows: Sequence[Report], over: str) -> None:
    """Draws steps per second of training and of environments alone, with a colour for each task."""
    for color, task in zip(COLORS, dict.fromkeys(row["env"] for row in rows), strict=False):
        of_task = [row for row in rows if row["env"] == task]
        counts = [row[over] for row in of_task]
        for name, style in (("alone", ":"), ("training", "-")):
            rates = [row[name] for row in of_task]
            look = {"color": color, "linestyle": style, "marker": "o", "markersize": 4}
            axes.loglog(counts, rates, label=f"{task}, {name}", **look)
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_ylabel("steps per second")
    axes.legend(frameon=False, fontsize="small", loc="center")


def draw_seeds(axes: Axes, rows: Sequence[Report], over: str) -> None:
    """Draws steps per second of all seeds together, with a colour for each form of batching."""
    counts = [row[over] for row in rows]
    for color, name in zip(COLORS, ("vmap", "map", "batched map"), strict=False):
        axes.plot(counts, [row[name] for row in rows], "o-", color=color, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set(ylim=(0, None), ylabel="steps per second")
    axes.legend(frameon=False, loc="lower right")
