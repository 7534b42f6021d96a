"""The check whether a stored run can go on with the settings that were asked for."""

import shlex
from pathlib import Path
from typing import Any

from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import DESCRIPTION, SUMMARY, read_description, read_run

BROKEN_SEEDS = "broken_seeds"
# Entries of a description that may differ when a run goes on.
FREE = ("command", "commit", "device", "placement", "policy", "started", "env_timeout")
FREE += ("action_components", "stop_at_return", BROKEN_SEEDS)


def differing_settings(asked: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns in words which settings of two descriptions differ; an empty text if none does.

    Two versions of a package count as the same if only their last part differs (see
    `differing_patches`). Versions of trpo_jax must be exactly the same.
    """
    patches = _patches(asked, found)
    asked, found = (_flat_settings(description) for description in (asked, found))
    found |= {name: asked[name] for name in patches}
    names = [name for name in asked | found if asked.get(name) != found.get(name)]
    return ", ".join(f"{x} = {found.get(x)!r}, not {asked.get(x)!r}" for x in names)


def differing_patches(asked: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns in words which packages have versions that differ in their last part alone.

    With such versions, numbers may differ in rounding, and environments in details.
    """
    patches = _patches(asked, found)
    return ", ".join(f"{name} {now}, not {before}" for name, (now, before) in patches.items())


def _patches(asked: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    minor = lambda version: str(version).split(".")[:2]
    now, before = (description.get("versions", {}) for description in (asked, found))
    return {
        name: (version, before[name])
        for name, version in now.items()
        if version != before.get(name) and minor(version) == minor(before.get(name))
        if name != "trpo_jax"
    }


def _flat_settings(description: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: x for name, x in description.items() if name not in FREE}
    parts = (chosen.pop(name, {}) for name in ("config", "versions", "jax"))
    return {name: x for part in parts for name, x in part.items()} | chosen


def begun_steps(folder: Path) -> int | None:
    """Returns the total steps that were planned for the run in a folder; None without a run."""
    there = (folder / DESCRIPTION).is_file()
    return read_description(folder, "total_steps")["total_steps"] if there else None


def refuse_to_resume(folder: Path, description: dict[str, Any]) -> None:
    """Raises a ConfigurationError if a run is finished, or if it was started with other settings.

    Any run may go on to more steps than were planned, also a finished run.
    """
    found = read_description(folder, "command", "config", "versions", "total_steps")
    asked, begun = description["total_steps"], found["total_steps"]
    if (folder / SUMMARY).is_file() and asked <= begun:
        num_updates = read_run(folder).metrics["update"].shape[1]
        raise ConfigurationError(
            f"The run in {folder} is finished: its {num_updates:,} updates are done, and "
            f"{SUMMARY} has the results. To train for more than its {begun:,} steps, give a "
            "larger total_steps."
        )
    different = differing_settings(description, found | {"total_steps": max(asked, begun)})
    if different:
        command = found["command"]
        anew = f"use its own command: {shlex.join(command)}" if command else "choose another folder"
        raise ConfigurationError(
            f"The run in {folder} has {different}. It can only continue with the same settings. "
            "Leave out the settings that differ, and install the same versions (for instance "
            "python3 -m uv run --with jax==...). Only the last part of a version may differ. To "
            f"start anew, {anew}"
        )
