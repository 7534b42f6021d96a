"""Calculates how far an update scales over devices that share its environments, and checks it.

The script measures conjugate gradient in one process and in two processes, with one thread each. It
writes scaling.md, scaling.json and scaling.png. No other program should run at the same time.
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
    between,
    critic_sums,
    iteration,
    most_devices,
    update,
)

from trpo_jax.cli.command_line import Parser, user_errors
from trpo_jax.errors import ConfigurationError
from trpo_jax.figures.curves import COLORS, LINE_STYLES, Figure, file_of, style
from trpo_jax.records.files import create_run_folder, write_json, write_whole
from trpo_jax.running.description import provenance
from trpo_jax.running.settings import require_at_least

MEASURE = Path(__file__).with_name("scaling_measure.py")
SPEED = Path(__file__).parents[1] / "results" / "speed.json"
NETS = {"5k": 5_000, "50k": 50_000, "500k": 500_000, "5M": 5_000_000}  # parameters
DEVICES = (1, 8, 64, 256, 1024)
MOST_DEVICES = 1024
LIKE_MEASURED = (1, 8, 64)  # devices like the one that speed.py measured
# The data sheet says 67 TFLOP/s in float32; a fifth of it is reached. It says 3.3 TB/s for memory,
# 450 GB/s for NVLink and 50 GB/s for the network card of a GPU; 67 to 80 % of these are reached.
H100 = Machine("H100, 8 in a node", 13e12, 2.5e12, 8, (300e9, 40e9), (15e-6, 10e-6))
KNOBS = {
    "defaults: 10 iterations, the critic fitted in 10 x 16 minibatches": {},
    "a quarter of the states in products (`--fisher-subsample 4`)": {"subsample": 4},
    "half of the iterations (`--cg-iters 5`)": {"cg_iters": 5},
    "four minibatches of the critic (`--critic-minibatches 4`)": {"critic_minibatches": 4},
    "a Gauss-Newton step of the critic (`--gae-critic trust_region`)": {"critic_minibatches": 0},
    "a Gauss-Newton step of the critic, and four times the batch": {
        "critic_minibatches": 0,
        "num_states": 2**22,
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(highlight=False, soft_wrap=True)
    with user_errors():
        parser = Parser(description=__doc__.replace("\n", " "), allow_abbrev=False)
        help_text = "number of turns of each measurement (default: 7)"
        parser.add_argument("--repeats", type=int, default=7, metavar="N", help=help_text)
        help_text = "output folder; it must be new or empty (default: runs/scaling)"
        default = Path("runs/scaling")
        parser.add_argument("--out", type=Path, default=default, metavar="FOLDER", help=help_text)
        help_text = "file of speed.py with the speeds of one device (default: the published one)"
        parser.add_argument("--speed", type=Path, default=SPEED, metavar="FILE", help=help_text)
        args = parser.parse_args(words)
        require_at_least(repeats=(args.repeats, 1))
        speed = read_speed(args.speed)
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
    (folder / "scaling.md").write_text("\n".join(page(report, setting, speed)) + "\n")
    write_whole(folder / "scaling.png", file_of(figure(setting), "png", 110))
    console.print(f"Table: {folder / 'scaling.md'}")
    return 0


def measure(num_processes: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each net, measured in processes that share the states."""
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
        raise RuntimeError(f"The measuring processes ended with exit codes {failed}")
    rows = json.loads(out.read_text())
    out.unlink()
    return rows


def read_speed(file: Path) -> dict[str, Any]:
    """Returns the contents of a file of `speed.py`.

    Raises:
        ConfigurationError: if the file is not there or lacks the part `training`.
    """
    speed = json.loads(file.read_text()) if file.is_file() else {}
    if "training" not in speed:
        raise ConfigurationError(
            f"speed = {file} is no file of experiments/benchmarks/speed.py with the part training. "
            "Run `experiments/benchmarks/speed.py --parts training`, and give its speed.json."
        )
    return speed


def page(report: dict[str, Any], setting: Setting, speed: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of scaling.md."""
    yield "# How far split environments scale"
    yield ""
    yield from ("```", f"python3 -m uv run {' '.join(report['command'])}", "```", "")
    yield (
        "`--shard environments` gives each of D devices N / D of the N states of an update. Every "
        "mean over states becomes a sum over the devices. A gradient and a Fisher-vector product "
        "each need one sum of P numbers, where P is the number of parameters. So an iteration of "
        "conjugate gradient sums 4 P bytes. All other sums have only a few numbers. The compiler "
        "adds these sums, and a test finds them in the compiled program "
        "(`tests/running/test_devices.py`)."
    )
    yield ""
    yield from measured_lines(report)
    yield from iteration_lines(setting)
    yield from knob_lines(setting)
    yield ""
    yield from device_lines(setting, speed)


def measured_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields the section of the measurements, beside the calculated values."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    one, two = report["measured"]
    yield "## Measured: two processes on one machine"
    yield ""
    yield (
        f"{report['device']['kind']}, {versions}. The task is ten iterations of conjugate gradient "
        "over states of the size of HalfCheetah. Times are medians over turns. Each process has "
        "one thread, and the processes communicate over loopback (gloo). Two parts are also "
        "measured alone: the work on vectors, which every process does in full, and the sums. The "
        "calculated time is half of the time of one process without the vectors, plus the vectors, "
        "plus ten sums. The bytes are read from the compiled program. They are 4 P, where P leaves "
        "out the log standard deviations: their part of the metric is the same at every state, so "
        "it needs no sum."
    )
    yield ""
    yield (
        "| parameters | states | bytes summed in an iteration | one process, ms "
        "| vectors alone, ms | ten sums alone, ms | two processes, ms | calculated, ms |"
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
        f"Two processes took {min(ratios):.1f} to {max(ratios):.1f} times the calculated time. "
        "They also wait for the slower process, and gloo uses the cores that compute."
    )
    yield ""


def iteration_lines(setting: Setting) -> Iterator[str]:
    """Yields the section of one iteration of conjugate gradient."""
    yield f"## Calculated: one iteration of conjugate gradient on {H100.name}"
    yield ""
    yield (
        f"N = {setting.num_states:,} states (for example 8,192 environments for 128 steps). A "
        f"product takes c = {setting.product:.1f} operations for each parameter and state. The "
        "compiler counted them in the programs above. All other numbers are assumed, not measured. "
        f"A GPU reaches {H100.flops / 1e12:.0f} TFLOP/s. It sends "
        f"{H100.bandwidths[0] / 1e9:.0f} GB/s within a node and {H100.bandwidths[1] / 1e9:.0f} "
        f"GB/s to other nodes. Its memory has {H100.memory / 1e12:.1f} TB/s. A sum takes at least "
        f"{H100.latencies[0] * 1e6:.0f} µs, and {H100.latencies[1] * 1e6:.0f} µs more for each "
        "doubling of the nodes. Small networks will reach fewer operations per second. A cell "
        "shows three numbers: the microseconds of the products over the states of a device, the "
        "microseconds of sums and vectors, and the share of the products in the whole time."
    )
    yield ""
    yield from device_columns(["parameters", "summed"], DEVICES)
    for name, num_params in NETS.items():
        cells = []
        for count in DEVICES:
            cost = iteration(H100, setting, num_params, count)
            shared, common = (1e6 * x for x in cost)
            cells.append(f"{shared:,.0f} + {common:,.0f}: {cost.efficiency:.0%}")
        yield f"| {name} | {BYTES * num_params / 1e3:,.0f} kB | {' | '.join(cells)} |"
    yield ""
    yield "![Share of the time that devices divide, over devices](scaling.png)"
    yield ""
    half = 2 * BYTES * H100.flops / (setting.product * H100.bandwidths[0])
    far = 1e6 * all_reduce_seconds(H100, 0, MOST_DEVICES)
    yield (
        "Operations and bytes both grow with P. So for large networks only the number of states on "
        "each device matters. Sums take more than half of the time if N / D is less than "
        "8 F / (c B), where F is the operations per second and B is the bandwidth. Within a node "
        f"this is {half:,.0f} states. For small networks the latency L of a sum matters. It is "
        f"{far:.0f} µs on {MOST_DEVICES:,} devices. Sums then take half of the time if N / D is "
        "F L / (c P)."
    )
    yield ""


def device_columns(first: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """Yields the head of a table with some first columns and a column for each device count."""
    names = [*first, *(f"{n:,} devices" if n > 1 else "1 device" for n in counts)]
    yield f"| {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * (len(names) - 1)}"


def knob_lines(setting: Setting) -> Iterator[str]:
    """Yields the section of the settings that change how far an update scales."""
    yield "## Calculated: which settings let an update scale further"
    yield ""
    yield (
        "A cell shows the largest number of devices that still spend at least half of the time of "
        "a whole update on their states, and the time of an update. The numbers are powers of two "
        "up to 1,024. The steps of the environment are left out. They need no communication, so an "
        "update with them scales further. Policy and critic have the same number of parameters."
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
        "are for the critic. So the minibatches of the critic limit the scaling first. To scale "
        "further, choose fewer minibatches or one Gauss-Newton step. Fewer iterations of conjugate "
        "gradient do not change how far the solver scales, because each iteration computes and "
        "sums the same. A subsampled Fisher matrix makes an update faster, but it scales *less* "
        "far, because the sums stay. With a larger batch, the number of devices grows in "
        "proportion."
    )


def device_lines(setting: Setting, speed: dict[str, Any]) -> Iterator[str]:
    """Yields the section of 8 and 64 devices like the one that `speed.py` measured."""
    device, versions = speed["device"], speed["versions"]
    yield "## Calculated from measured speeds: 8 and 64 devices"
    yield ""
    yield (
        f"The speeds of one device were measured by `speed.py` ({device['kind']}, "
        f"{device['cores']} cores, trpo_jax {versions['trpo_jax']}). The network is assumed to be "
        "that of the H100 above. Devices that train whole seeds do not communicate, so D devices "
        "are D times as fast as one device with its part of the seeds. Devices that share the "
        "environments of one seed take the measured time of their part of the environments, and "
        "the calculated time of the sums. Between measured sizes, the table interpolates on "
        "logarithmic scales. A cell shows steps per second, and the speed-up over one device."
    )
    yield ""
    yield from device_columns(["work"], LIKE_MEASURED)
    for name, rates in device_rates(setting, speed).items():
        cells = [f"{rate:,.0f} ({rate / rates[0]:.1f})" for rate in rates]
        yield f"| {name} | {' | '.join(cells)} |"


def device_rates(setting: Setting, speed: dict[str, Any]) -> dict[str, list[float]]:
    """Returns the steps per second of `LIKE_MEASURED` devices, for each way to share the work."""
    seeds = speed["training"]["seeds"]
    numbers, of_seeds = ([row[name] for row in seeds] for name in ("num_seeds", "vmap"))
    most = max(numbers)
    found = {
        f"CartPole-v1, {most:,} seeds, whole seeds on each device": [
            n * between(numbers, of_seeds, most / n) for n in LIKE_MEASURED
        ]
    }
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in speed["training"]["environments"]:
        by_task.setdefault(row["env"], []).append(row)
    for task, rows in by_task.items():
        envs = [row["num_envs"] for row in rows]
        steps = rows[-1]["num_steps"]
        seconds = [row["num_envs"] * steps / row["training"] for row in rows]
        rates = []
        for n in LIKE_MEASURED:
            sums = update(H100, setting, rows[-1]["parameters"], n).common if n > 1 else 0.0
            rates.append(envs[-1] * steps / (between(envs, seconds, envs[-1] / n) + sums))
        found[f"{task}, one seed, {envs[-1]:,} environments, shared"] = rates
    return found


def figure(setting: Setting) -> Figure:
    """Returns a figure of the share of time that devices divide among them."""
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
    panels[0].set_ylabel("time that devices divide, %")
    panels[0].legend(frameon=False, fontsize=9)
    return result


if __name__ == "__main__":
    sys.exit(main())
