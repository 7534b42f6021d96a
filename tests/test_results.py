"""The tables of `experiments/results`: they come from their reports, and describe this version."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import reproduce
import returns_table

import trpo_jax
from trpo_jax.cli.run_flags import plan_of
from trpo_jax.running import description

CURRENT = reproduce.reports()
BENCHMARKS = tomllib.loads(reproduce.BENCHMARKS_FILE.read_text())
SCRIPTS = BENCHMARKS.pop(reproduce.SCRIPTS)
NEWER_FIELDS = {"penalty_memory": 0.0}  # fields that some tables lack, without an effect on them


@pytest.mark.parametrize("name", CURRENT)
def test_a_table_shows_the_numbers_of_its_report_and_the_texts_of_its_benchmark(name, tmp_path):
    report = CURRENT[name] | reproduce.heading(BENCHMARKS[name], name)
    reproduce.write_files(report, name, tmp_path)
    for kind in ("json", "md"):
        path = Path(f"{name}.{kind}")
        assert (tmp_path / path).read_text() == (reproduce.RESULTS / path).read_text()


@pytest.mark.parametrize("name", CURRENT)
def test_a_table_describes_the_defaults_of_this_version(name, tmp_path):
    rows = [x for x in returns_table.finished(CURRENT[name]) if "argv" in x[2]]
    for task, method, row in rows:
        config = plan_of([*row["argv"], "--out", str(tmp_path)]).description["config"]
        newer = {name: x for name, x in NEWER_FIELDS.items() if name in config}
        assert description.as_json(config) == newer | row["config"], (
            f"{task}, {method}: run reproduce.py --benchmark {name}"
        )


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/choosing.md"])
def test_a_line_about_a_task_quotes_a_report(page):
    texts: dict[str, set[str]] = {}
    for report in CURRENT.values():
        for task, _, row in returns_table.finished(report):
            if "per_seed" in row:
                texts.setdefault(task, set()).add(returns_table.mean_text(row))
    lines = (reproduce.HERE.parent / page).read_text().splitlines()
    quotes = [x for x in lines if x.startswith("| ") and x.split(" | ")[0][2:] in texts]
    assert len(quotes) > 4
    for line in quotes:
        task, rest = line[2:].split(" | ", 1)
        quoted = set(re.findall(r"[-\d.,]+ \(\S+ to \S+\)", rest))
        assert quoted and quoted <= texts[task], line


OTHERS = {x: reproduce.RESULTS / f"{x}.md" for x in sorted(BENCHMARKS.keys() - CURRENT.keys())}


@pytest.mark.parametrize("name", [name for name, page in OTHERS.items() if page.is_file()])
def test_a_table_whose_settings_are_unknown_says_that_it_is_old(name):
    page = OTHERS[name].read_text()
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


def test_a_run_names_the_commit_of_a_checkout_and_of_nothing_else(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(trpo_jax, "__file__", str(tmp_path / "trpo_jax" / "__init__.py"))
    assert description.commit() is None
    git("init", "-q")
    assert description.commit() is None, "a checkout without a commit"
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "first")
    clean = description.commit()
    assert len(clean) >= 7
    (tmp_path / "file").write_text("2")
    assert description.commit() == f"{clean}-dirty"
