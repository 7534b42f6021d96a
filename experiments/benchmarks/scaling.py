"""How far an update scales over devices that share its environments: a model, and what checks it.

Measures conjugate gradient in one and in two processes, each with one thread to compute in, and
writes scaling.md, scaling.json and scaling.png. Nothing else should run meanwhile.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from scaling_model import (
    BYTES,
    Machine,
    Setting,
    all_reduce_seconds,
    critic_sums,
    iteration,
    most_devices,
    update,
)

from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.figures.curves import COLORS, LINE_STYLES, Figure, file_of, style
from trpo_jax.records.files import create_run_folder, write_json, write_whole
from trpo_jax.running.description import provenance
from trpo_jax.running.plan import require_at_least

MEASURE = Path(__file__).with_name("scaling_measure.py")
NETS = {"5k": 5_000, "50k": 50_000, "500k": 500_000, "5M": 5_000_000}  # parameters
DEVICES = (1, 8, 64, 256, 1024)
MOST_DEVICES = 1024
# Nominal: 67 TFLOP/s in float32, of which a fifth is attained; memory of 3.3 TB/s; NVLink 450 GB/s
# and for each GPU a network card of 50 GB/s, of all of which two thirds to four fifths are.
H100 = Machine("H100, 8 in a node", 13e12, 2.5e12, 8, (300e9, 40e9), (15e-6, 10e-6))
KNOBS = {
    "as it is: 10 iterations, the critic fitted in 10 x 16 minibatches": {},
    "a fourth of the states in products (`--fisher-subsample 4`)": {"subsample": 4},
    "half of the iterations (`--cg-iters 5`)": {"cg_iters": 5},
    "four minibatches of the critic (`--critic-minibatches 4`)": {"critic_minibatches": 4},
    "a Gauss-Newton step of the critic (`--gae-critic trust_region`)": {"critic_minibatches": 0},
    "that, and four times the batch": {"critic_minibatches": 0, "num_states": 2**22},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        parser = Parser(description=__doc__.replace("\n", " "), allow_abbrev=False)
        help_text = "turns of everything that is timed (default: 7)"
        parser.add_argument("--repeats", type=int, default=7, metavar="N", help=help_text)
        help_text = "output folder, new or empty (default: runs/scaling)"
        parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help=help_text)
        args = parser.parse_args(words)
        require_at_least(repeats=(args.repeats, 1))
        folder = create_run_folder(args.out)
    measured = {}
    for num_processes in (1, 2):
        with console.status(f"Measuring in {num_processes} processes"):
            measured[num_processes] = measure(num_processes, args.repeats, folder)
    report = {
        "command": ["experiments/benchmarks/scaling.py", *words],
        **provenance("CartPole-v1"),
        "measured": list(measured.values()),
    }
    operations = median(row["product_operations"] for row in measured[1])
    setting = Setting(operations)
    write_json(folder / "scaling.json", report)
    (folder / "scaling.md").write_text("\n".join(page(report, setting)) + "\n")
    write_whole(folder / "scaling.png", file_of(figure(setting), "png", 110))
    console.print(f"Table: {folder / 'scaling.md'}")
    return 0


def measure(num_processes: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each net, measured in processes that share its states."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        coordinator = f"localhost:{server.getsockname()[1]}"
    out = folder / "measured.json"
    words = [sys.executable, str(MEASURE), "--out", str(out), "--repeats", str(repeats)]
    words += ["--distributed", "--coordinator", coordinator, "--num-processes", str(num_processes)]
    started = [
        subprocess.Popen([*words, "--process-id", str(k)], stdout=subprocess.DEVNULL)
        for k in range(num_processes)
    ]
    failed = [process.wait() for process in started]
    if any(failed):
        raise RuntimeError(f"The measuring processes ended with {failed}")
    rows = json.loads(out.read_text())
    out.unlink()
    return rows


def page(report: dict[str, Any], setting: Setting) -> Iterator[str]:
    """Yields the lines of scaling.md."""
    yield "# Environments split over devices: where it stops scaling"
    yield ""
    yield from ("```", f"python3 -m uv run {' '.join(report['command'])}", "```", "")
    yield (
        "`--shard environments` gives each of D devices N / D of the N states of an update. What "
        "is a mean over states is summed over the devices: the P numbers of a gradient or of a "
        "Fisher-vector product once each, so 4 P bytes in an iteration of conjugate gradient; all "
        "else are a few numbers. The whole program is compiled with shardings alone, and a test "
        "reads these sums off it (`tests/training/test_devices.py`)."
    )
    yield ""
    yield from measured_lines(report)
    yield from iteration_lines(setting)
    yield from knob_lines(setting)


def measured_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the section of what was measured, beside what the model says of it."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    one, two = report["measured"]
    yield "## Measured: two processes on one machine"
    yield ""
    yield (
        f"{report['device']['kind']}, {versions}. Ten iterations of conjugate gradient over states "
        "of HalfCheetah's size, medians of turns. Each process computes in one thread, and they "
        "talk over loopback (gloo). Conjugate gradient's own vectors, which no device is spared, "
        "and the sums were measured by themselves too. Calculated is half of what one process "
        "needs beside its vectors, the vectors, and ten sums. The bytes are read off the compiled "
        "program: 4 P, but for the log standard deviations, whose part of the metric is the same "
        "at every state."
    )
    yield ""
    yield (
        "| parameters | states | bytes summed in an iteration | one process, ms "
        "| its vectors alone, ms | ten sums alone, ms | two processes, ms | calculated, ms |"
    )
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    ratios = []
    for alone, both in zip(one, two, strict=True):
        single, vectors, sums, double = (
            1e3 * median(row[f"{name}_seconds"])
            for row, name in (
                (alone, "solve"),
                (alone, "vectors"),
                (both, "sums"),
                (both, "solve"),
            )
        )
        calculated = (single - vectors) / 2 + vectors + sums
        ratios.append(double / calculated)
        num_bytes = sum(size for kind, size in both["collectives"])
        yield (
            f"| {both['num_params']:,} | {both['num_states']:,} | {num_bytes:,} | {single:,.1f} | "
            f"{vectors:,.1f} | {sums:,.1f} | {double:,.1f} | {calculated:,.1f} |"
        )
    yield ""
    yield (
        f"Two processes took {min(ratios):.1f} to {max(ratios):.1f} times what is calculated: they "
        "also wait for the slower one, and gloo takes its time on cores that compute."
    )
    yield ""


def iteration_lines(setting: Setting) -> Iterator[str]:
    """Yields the section of one iteration of conjugate gradient."""
    yield f"## Calculated: an iteration of conjugate gradient on {H100.name}"
    yield ""
    yield (
        f"N = {setting.num_states:,} states (8,192 environments for 128 steps, say). A product "
        f"takes c = {setting.product:.1f} operations for each parameter and state, which the "
        "compiler counted in the programs above. All else is assumed, not measured: a GPU attains "
        f"{H100.flops / 1e12:.0f} TFLOP/s, sends {H100.bandwidths[0] / 1e9:.0f} GB/s inside of a "
        f"node and {H100.bandwidths[1] / 1e9:.0f} GB/s out of it, has memory of "
        f"{H100.memory / 1e12:.1f} TB/s, and a sum takes at least "
        f"{H100.latencies[0] * 1e6:.0f} µs and {H100.latencies[1] * 1e6:.0f} µs more for each "
        "doubling of the nodes. Small networks will attain less. Cells: products over a "
        "device's states + sums and vectors in µs, and the share of the former."
    )
    yield ""
    counts = " | ".join(f"{count:,} devices" if count > 1 else "1 device" for count in DEVICES)
    yield f"| parameters | summed | {counts} |"
    yield f"| ---: | ---: |{' ---: |' * len(DEVICES)}"
    for name, num_params in NETS.items():
        cells = []
        for count in DEVICES:
            cost = iteration(H100, setting, num_params, count)
            shared, common = (1e6 * x for x in cost)
            cells.append(f"{shared:,.0f} + {common:,.0f}: {cost.efficiency:.0%}")
        yield f"| {name} | {BYTES * num_params / 1e3:,.0f} kB | {' | '.join(cells)} |"
    yield ""
    yield "![Share of the time that is shared, over devices](scaling.png)"
    yield ""
    half = 2 * BYTES * H100.flops / (setting.product * H100.bandwidths[0])
    far = 1e6 * all_reduce_seconds(H100, 0, MOST_DEVICES)
    yield (
        "Computing and the bytes both grow with P, so that for large networks the states on each "
        "device decide alone: half of the time goes into sums below N / D = 8 F / (c B), with F "
        f"the operations a second and B the bandwidth, which is {half:,.0f} states within "
        f"a node. For small ones latency decides ({far:.0f} µs on {MOST_DEVICES:,} devices): the "
        "point lies at N / D = F L / (c P)."
    )
    yield ""


def knob_lines(setting: Setting) -> Iterator[str]:
    """Yields the section of what moves the point where an update stops scaling."""
    yield "## Calculated: which knob moves that point"
    yield ""
    yield (
        "The most devices, in powers of two up to 1,024, that spend at least half of the time of a "
        "whole update on their states, and how long it then takes. The steps of the environment "
        "itself are left out; nothing is communicated in them, so that with them it scales "
        "further. Policy and critic have as many parameters."
    )
    yield ""
    yield f"| | {' | '.join(NETS)} |"
    yield f"| --- |{' ---: |' * len(NETS)}"
    for what, changes in KNOBS.items():
        changed, cells = setting._replace(**changes), []
        for num_params in NETS.values():
            count = most_devices(partial(update, H100, changed, num_params), MOST_DEVICES)
            seconds = sum(update(H100, changed, num_params, count))
            cells.append(f"{count:,} ({1e3 * seconds:,.0f} ms)")
        yield f"| {what} | {' | '.join(cells)} |"
    yield ""
    of_critic = critic_sums(setting)
    yield (
        f"Of the {1 + setting.cg_iters + of_critic} sums of parameters in an update, {of_critic} "
        "are the critic's: its minibatches are "
        "what stops first, and fewer of them, or one Gauss-Newton step, are the knob to turn. "
        "Fewer iterations of conjugate gradient leave the point of the solve where it is: each "
        "computes and sums alike. A thinned Fisher matrix makes an update faster and scales *less* "
        "far: the sums stay. A bigger batch moves everything in proportion."
    )


def figure(setting: Setting) -> Figure:
    """Returns what share of the time more devices shorten, of an iteration and of an update."""
    result = Figure(figsize=(9, 3.8), layout="constrained")
    panels = result.subplots(1, 2, sharey=True)
    counts = [2**k for k in range(MOST_DEVICES.bit_length())]
    titles = {"an iteration of conjugate gradient": iteration, "a whole update": update}
    for axes, (title, cost) in zip(panels, titles.items(), strict=True):
        for i, (name, num_params) in enumerate(NETS.items()):
            shares = [100 * cost(H100, setting, num_params, n).efficiency for n in counts]
            look = {"color": COLORS[i], "linestyle": LINE_STYLES[i % 2]}
            axes.plot(counts, shares, label=f"{name} parameters", **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(DEVICES, [f"{count:,}" for count in DEVICES])
        axes.set_xlabel("devices")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(0, 102)
        style(axes)
    panels[0].set_ylabel("time that is shared, %")
    panels[0].legend(frameon=False, fontsize=9)
    return result


if __name__ == "__main__":
    sys.exit(main())
