import dataclasses
import re
from types import SimpleNamespace

import pytest
from stored_runs import write_run

import trpo_jax
from trpo_jax import algorithms, envs
from trpo_jax.errors import ConfigurationError
from trpo_jax.records import citations
from trpo_jax.records.citations import citation, keys_of_environment

TABLES = (citations.ALGORITHMS, citations.SETTINGS, citations.SUITES, citations.TASKS)


def run_of(algorithm, env, config):
    blank = trpo_jax.Run(*[None] * len(trpo_jax.Run._fields))
    return blank._replace(name=algorithm, env=SimpleNamespace(name=env), config=config)


def keys_in(text):
    return re.findall(r"^@\w+\{(\w+),", text, re.M)


def test_every_key_has_an_entry_and_every_entry_is_used():
    used = {key for table in TABLES for keys in table.values() for key in keys}
    assert used | {citations.LIBRARY, citations.ADVANTAGES[1]} == citations.entries().keys()


def test_the_bib_file_has_no_text_outside_its_entries():
    path = citations.__file__.replace(".py", ".bib")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    assert text == "\n\n".join(citations.entries().values()) + "\n"
    keys = keys_in(text)
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("key", citations.entries())
def test_an_entry_is_valid_and_has_author_title_and_year(key):
    entry = citations.entries()[key]
    assert entry.count("{") == entry.count("}")
    head, *lines, end = entry.splitlines()
    assert end == "}"
    assert all(re.fullmatch(r"  \w+ = \{.+\},", line) for line in lines[:-1])
    assert re.fullmatch(r"  \w+ = \{.+\}", lines[-1])
    fields = [line.split()[0] for line in lines]
    assert {"author", "title", "year"} <= set(fields) and len(fields) == len(set(fields))
    assert ("booktitle" in fields) == head.startswith("@inproceedings")
    assert ("journal" in fields) == head.startswith("@article")
    assert ("eprint" in fields) == ("archivePrefix" in fields)


def test_the_tables_have_every_algorithm_and_every_suite():
    assert citations.ALGORITHMS.keys() == set(algorithms.ALGORITHMS)
    assert citations.SUITES.keys() == envs.SUITES.keys()


def test_every_setting_in_the_tables_exists_in_an_algorithm():
    configs = [algorithms.get(name).Config() for name in algorithms.ALGORITHMS]
    fields = {x.name: x for config in configs for x in dataclasses.fields(config)}
    assert citations.ADVANTAGES[0] in fields
    for name, value in citations.SETTINGS:
        assert fields[name].metadata["accepts"](value)


def test_without_a_run_only_the_library_is_cited_with_its_version():
    assert keys_in(citation()) == ["trpo_jax"]
    assert f"Version {trpo_jax.__version__}" in citation()


def test_a_stored_run_cites_the_papers_it_used_and_its_version_of_the_library(tmp_path):
    settings = {"gae_lambda": 0.95, "memory": "lstm", "solver": "cg", "exploration": "colored"}
    write_run(tmp_path / "run", "gym/Hopper-v5", "trpo_pid", **settings)
    assert keys_in(citation(tmp_path / "run")) == [
        "trpo_jax",
        "stooke2020responsive",
        "schulman2015trust",
        "schulman2016high",
        "hochreiter1997long",
        "gers2000learning",
        "hollenstein2024colored",
        "towers2024gymnasium",
        "todorov2012mujoco",
    ]
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace("{", '{"versions": {"trpo_jax": "0.7.0"}, ', 1))
    assert "Version 0.7.0" in citation(str(tmp_path / "run"))


def test_a_run_cites_the_papers_it_used():
    run = run_of("ppo", "Breakout-MinAtar", algorithms.get("ppo").Config(loss="spo"))
    assert keys_in(citation(run)) == [
        "trpo_jax",
        "schulman2017proximal",
        "schulman2016high",
        "xie2025simple",
        "gymnax2022github",
        "young2019minatar",
    ]


def test_algorithms_and_environments_of_the_user_have_no_entry():
    assert keys_in(citation(run_of("my_module", "Corridor", None))) == ["trpo_jax"]


@pytest.mark.parametrize(
    ("name", "keys"),
    {
        "CartPole-v1-NoVel": ["gymnax2022github"],
        "gymnax/Catch-bsuite": ["gymnax2022github", "osband2020behaviour"],
        "pgx/minatar-breakout": ["koyamada2023pgx", "young2019minatar"],
        "gym/CartPole-v1": ["towers2024gymnasium"],
        "gym/my_package:MyEnv-v0": ["towers2024gymnasium"],
        "gym/highway-fast-v0": ["towers2024gymnasium", "leurent2018environment"],
        "gym/MiniGrid-Empty-5x5-v0": ["towers2024gymnasium", "chevalier2023minigrid"],
        "gym/BabyAI-GoTo-v0": [
            "towers2024gymnasium",
            "chevalier2023minigrid",
            "chevalier2018babyai",
        ],
        "native/TollRoad": [],
        "my_module:make_env": [],
        "mine/Corridor": [],
        "pettingzoo/mpe2.simple_spread_v3": ["terry2021pettingzoo", "lowe2017multi"],
        "jaxmarl/SMAX": ["rutherford2024jaxmarl"],
    }.items(),
)
def test_an_environment_cites_its_suite_and_its_task(name, keys):
    assert keys_of_environment(name) == keys


def test_the_name_of_an_envpool_task_says_if_it_is_a_game_a_robot_or_a_road():
    registry = pytest.importorskip("envpool.registration").registry
    sources = {
        "bellemare2013arcade": "envpool.atari",
        "todorov2012mujoco": "envpool.mujoco.gym",
        "chevalier2023minigrid": "envpool.minigrid",
    }
    for name, (source, *_) in registry.specs.items():
        found = keys_of_environment(f"envpool/{name}")
        for key, expected in sources.items():
            assert (key in found) == (source == expected), name
        if "leurent2018environment" in found:
            assert source == "envpool.highway", name


def test_a_value_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"run = 3 is no run"):
        citation(3)
    with pytest.raises(ConfigurationError, match=r"There is no run in .*: it has no config.json"):
        citation(tmp_path)
