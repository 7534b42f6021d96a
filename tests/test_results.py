"""The tables of `experiments/results`: they come from their reports, and describe this version."""

import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import reproduce

from trpo_jax.cli.run_flags import plan_of
from trpo_jax.running.description import as_json

CURRENT = reproduce.reports()
BENCHMARKS = tomllib.loads(reproduce.BENCHMARKS_FILE.read_text())
SCRIPTS = BENCHMARKS.pop(reproduce.SCRIPTS)


@pytest.mark.parametrize("name", CURRENT)
def test_a_table_shows_the_numbers_of_its_report(name, tmp_path):
    reproduce.write_files(CURRENT[name], name, tmp_path)
    for kind in ("json", "md"):
        path = Path(f"{name}.{kind}")
        assert (tmp_path / path).read_text() == (reproduce.RESULTS / path).read_text()


@pytest.mark.parametrize("name", CURRENT)
def test_a_table_describes_the_defaults_of_this_version(name, tmp_path):
    for task, row in CURRENT[name]["rows"].items():
        config = plan_of([*row["argv"], "--out", str(tmp_path)]).description["config"]
        assert as_json(config) == row["config"], f"{task}: run reproduce.py --benchmark {name}"


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - CURRENT.keys()))
def test_a_table_whose_settings_are_unknown_says_that_it_is_old(name):
    page = (reproduce.RESULTS / f"{name}.md").read_text()
    assert "*An earlier version of the library made this table: 0." in page


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_of_other_pages_write_their_results_into_new_folders(name):
    for result, command in SCRIPTS[name]:
        words = shlex.split(command)
        assert words[words.index("--out") + 1] in (result, str(Path(result).parent))
        script = next((Path(word) for word in words if word.endswith(".py")), None)
        assert script is None or (reproduce.HERE.parent / script).is_file()


def test_a_command_whose_result_exists_is_not_run_again(tmp_path):
    result = tmp_path / "result"
    write = f"{sys.executable} -c \"open('{result}', 'a').write('x')\""
    assert not reproduce.run_commands([(str(result), write), (str(result), write)])
    assert result.read_text() == "x"
    assert reproduce.run_commands([(str(tmp_path / "other"), f"{sys.executable} -c '1 / 0'")])
