"""The description that is stored with a run or a sweep: settings, versions, device, command."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import trpo_jax
from trpo_jax import envs
from trpo_jax.devices import RUNS, Placement
from trpo_jax.errors import ConfigurationError
from trpo_jax.processes import exchange
from trpo_jax.records.resuming import differing_settings

JAX_SETTINGS = ("default_prng_impl", "threefry_partitionable", "enable_x64")
JAX_SETTINGS += ("default_matmul_precision",)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Returns the fields of a config by name, or nothing if the config is not a dataclass."""
    if not dataclasses.is_dataclass(config):
        return {}
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def flags_of(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields the words of a command line that set some settings."""
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield from map(str, np.ravel(value).tolist() if np.ndim(value) else [value])


def provenance(env: str) -> dict[str, Any]:
    """Returns the versions, the commit, the device and the time of a run.

    Args:
        env: the name of the environment, whose suite decides which packages are listed.
    """
    device = jax.devices()[0]
    # An environment of the user may have any prefix, which `suite_of` would refuse.
    suite = env.partition("/")[0] if "/" in env else envs.suite_of(env)[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", *envs.SUITES.get(suite, ()))
    return {
        "versions": {
            "trpo_jax": trpo_jax.__version__,
            "python": platform.python_version(),
            # Not every environment of a suite needs all packages of the suite.
            **{name: version(name) for name in packages if any(distributions(name=name))},
        },
        # These settings of JAX change results, also random numbers.
        "jax": {name: getattr(jax.config, f"jax_{name}") for name in JAX_SETTINGS},
        "commit": commit(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "machine": f"{os.cpu_count()} cores of {processor()}",
        },
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def provenance_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the commits, versions and machines of runs as lines of Markdown.

    Args:
        found: for each run, a dictionary with the entries of `provenance`; missing ones are left
            out.
    """
    distinct = lambda name: dict.fromkeys(json.dumps(x[name]) for x in found if x.get(name))
    commits = [json.loads(text) for text in distinct("commit")]
    if commits:
        yield f"Commit: {', '.join(commits)}  "
    for text in distinct("versions"):
        yield f"Versions: {', '.join(f'{a} {b}' for a, b in json.loads(text).items())}  "
    for text in distinct("device"):
        yield f"Device: {', '.join(dict.fromkeys(json.loads(text).values()))}"


def commit() -> str | None:
    """Returns the commit of this package; None if it was not imported from a Git checkout.

    A changed checkout has the suffix `-dirty`.
    """
    checkout = Path(trpo_jax.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    call = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no Git, or the folder of another user
        return None


def processor() -> str:
    """Returns the name of the processor."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def refuse_other_processes(description: dict[str, Any], **more: Any) -> None:
    """Raises a ConfigurationError if the processes of a run or a sweep have different settings.

    Args:
        description: the description of the run in this process.
        **more: settings that must also be equal.

    Raises:
        ConfigurationError: in all processes. It names the differences.
        PeerFailure: if another process is gone.
    """
    if jax.process_count() == 1:
        return
    first, *others = exchange(as_json(description | more))
    differing = [(k, differing_settings(first, other)) for k, other in enumerate(others, start=1)]
    said = [f"process {k} has {text}" for k, text in differing if text]
    if said:
        raise ConfigurationError(
            f"The processes of this run are not alike: compared with process 0, {'; '.join(said)}. "
            "Start all of them with the same settings and versions."
        )


def as_json(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a dictionary as it would be read back from JSON. Arrays become lists."""
    plain = lambda x: x.tolist() if hasattr(x, "tolist") else str(x)
    return json.loads(json.dumps(data, default=plain))


def splits_runs(placement: Placement) -> bool:
    """Returns whether a placement splits whole runs, not the environments of each run."""
    return placement.rest.mesh.axis_names == (RUNS,)


def describe_placement(placement: Placement | None, split: str = "") -> str:
    """Returns a few words about the devices of a program, and about what is split over them."""
    kind = jax.devices()[0].device_kind
    if placement is None:
        return kind
    number, processes = len(placement.devices), jax.process_count()
    text = f"{number} x {kind}" + (f" in {processes} processes" if processes > 1 else "")
    return f"{text} (split by {split})" if split else text
