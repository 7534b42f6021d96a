"""Citations for a run as BibTeX: the library, and the papers of the parts that the run used.

The entries are in `citations.bib`. The tables below map algorithms, settings, suites and tasks to
the keys of their entries.
"""

import re
from os import PathLike
from pathlib import Path
from typing import Any

from trpo_jax import __version__
from trpo_jax.errors import ConfigurationError
from trpo_jax.records.runs import read_description

LIBRARY = "trpo_jax"
ALGORITHMS = {
    "trpo": ("schulman2015trust",),
    "npg": ("kakade2001natural",),
    "vpg": ("williams1992simple",),
    "ppo": ("schulman2017proximal",),
    "ua_trpo": ("queeney2021uncertainty", "schulman2015trust"),
    "qprop": ("gu2017qprop", "schulman2015trust"),
    "trpo_vine": ("schulman2015trust",),
    "trpo_held_out": ("schulman2015trust",),
    "trpo_ensemble": ("schulman2015trust",),
    "cpo": ("achiam2017constrained",),
    "pcpo": ("yang2020projection",),
    "trpo_lag": ("ray2019benchmarking", "schulman2015trust"),
    "trpo_pid": ("stooke2020responsive", "schulman2015trust"),
    "ppo_lag": ("ray2019benchmarking", "schulman2017proximal"),
    "hatrpo": ("kuba2022trust", "schulman2015trust"),
    "happo": ("kuba2022trust", "schulman2017proximal"),
    "mappo": ("yu2022surprising", "schulman2017proximal"),
}
ADVANTAGES = "gae_lambda", "schulman2016high"  # cited if a config has the field
SETTINGS = {  # by field of a config and its value
    ("normalized_step", True): ("rajeswaran2017towards",),
    ("loss", "spo"): ("xie2025simple",),
    ("solver", "kronecker"): ("martens2015optimizing",),
    ("normalize_values", True): ("vanhasselt2016learning",),
    ("memory", "gru"): ("cho2014learning",),
    ("memory", "lstm"): ("hochreiter1997long", "gers2000learning"),
    ("exploration", "ou"): ("lillicrap2016continuous",),
    ("exploration", "colored"): ("hollenstein2024colored",),
}
SUITES = {
    "gymnax": ("gymnax2022github",),
    "gym": ("towers2024gymnasium",),
    "envpool": ("weng2022envpool",),
    "brax": ("freeman2021brax",),
    "playground": ("zakka2025playground", "todorov2012mujoco"),
    "craftax": ("matthews2024craftax",),
    "jumanji": ("bonnet2024jumanji",),
    "pgx": ("koyamada2023pgx",),
    "navix": ("pignatelli2024navix",),
    # The robots of Gymnasium. EnvPool simulates them if it is installed.
    "velocity": ("ji2023safety", "towers2024gymnasium", "weng2022envpool", "todorov2012mujoco"),
    "driving": ("towers2024gymnasium", "leurent2018environment"),
    "jaxmarl": ("rutherford2024jaxmarl",),
    "pettingzoo": ("terry2021pettingzoo",),
    "native": (),  # the tasks of this library
}
_ROBOTS = "(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|Inverted(Double)?Pendulum|Pusher"
_ROBOTS += r"|Reacher|Swimmer|Walker2d)-v\d"
_ROADS = "exit|highway|intersection|lane-keeping|merge|parking|racetrack|roundabout|two-way|u-turn"
TASKS = {  # by pattern of the whole name; the paper of a task comes after that of its suite
    r".+-MinAtar|pgx/minatar-.+": ("young2019minatar",),
    r".+-bsuite": ("osband2020behaviour",),
    rf"(gym|envpool)/{_ROBOTS}": ("todorov2012mujoco",),
    # In EnvPool, a name that ends in -v5 and is not a robot is an Atari game.
    rf"gym/(ALE/.+|\w+NoFrameskip-v\d)|envpool/(?!{_ROBOTS}).+-v5": (
        "bellemare2013arcade",
        "machado2018revisiting",
    ),
    r"(gym|envpool)/(MiniGrid|BabyAI)-.+": ("chevalier2023minigrid",),
    r"(gym|envpool)/BabyAI-.+": ("chevalier2018babyai",),
    rf"(gym|envpool)/({_ROADS})(-.+)?-v\d": ("leurent2018environment",),
    r"pettingzoo/mpe2\..+|jaxmarl/MPE_.+": ("lowe2017multi",),
}


def citation(run: Any = None) -> str:
    """Returns the BibTeX entries to cite for a run.

    The entry of the library comes first. The papers of the algorithm, of the settings, and of the
    suite and the task of the environment follow. Algorithms and environments of the user have no
    entry.

    Args:
        run: a `Run`, or the folder of a stored run; None for the library alone.

    Raises:
        ConfigurationError: if `run` is not a run, or the folder holds no run.

    Examples:
        >>> run = trpo_jax.train(total_steps=2_048, seeds=2, progress=False, out="runs/cited")
        >>> print(trpo_jax.citation("runs/cited"))
        @misc{trpo_jax,
        ...
        @inproceedings{schulman2015trust,
        ...
        >>> trpo_jax.citation(run) == trpo_jax.citation("runs/cited")
        True
    """
    if run is None:
        return _entries([LIBRARY], __version__)
    if isinstance(run, str | PathLike):
        about = read_description(Path(run), "algorithm", "env", "config")
        algorithm, env, config = about["algorithm"], about["env"], about["config"]
        version = about.get("versions", {}).get(LIBRARY, __version__)
    else:
        try:
            algorithm, env = run.name, run.env.name
            config, version = getattr(run.config, "__dict__", {}), __version__
        except AttributeError as error:
            raise ConfigurationError(
                f"run = {run!r:.60} is no run: give a Run from trpo_jax.train, or the folder of a "
                "stored run."
            ) from error
    keys = [LIBRARY, *ALGORITHMS.get(algorithm, ())]
    keys += [ADVANTAGES[1]] if ADVANTAGES[0] in config else []
    for (field, value), found in SETTINGS.items():
        keys += found if field in config and config[field] == value else ()
    return _entries([*keys, *keys_of_environment(env)], version)


def keys_of_environment(name: str) -> list[str]:
    """Returns the keys of the papers to cite for an environment, given its name."""
    from trpo_jax.envs.wrappers import NO_VELOCITY_SUFFIX

    name = name.removesuffix(NO_VELOCITY_SUFFIX)
    suite = name.partition("/")[0] if "/" in name else _gymnax_or_own(name)
    tasks = [keys for pattern, keys in TASKS.items() if re.fullmatch(pattern, name)]
    return [*SUITES[suite], *(key for keys in tasks for key in keys)] if suite in SUITES else []


def _gymnax_or_own(name: str) -> str:
    """Returns "gymnax" if a name without a prefix is a gymnax task, else an empty text."""
    try:
        from trpo_jax.envs import gymnax
    except ModuleNotFoundError:  # without gymnax, nothing shows whose name it is
        return ""
    return "gymnax" if name in gymnax.names() else ""


def entries() -> dict[str, str]:
    """Returns the entries of `citations.bib` by key."""
    text = Path(__file__).with_suffix(".bib").read_text(encoding="utf-8")
    return {key: entry for entry, key in re.findall(r"(^@\w+\{(\w+),.*?^\})", text, re.M | re.S)}


def _entries(keys: list[str], version: str) -> str:
    known = entries()
    text = "\n\n".join(known[key] for key in dict.fromkeys(keys))
    return text.replace("VERSION", version)
