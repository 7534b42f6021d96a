"""The tables of `experiments/results`: they come from their reports, and describe this version."""

import json
from pathlib import Path

import pytest
import reproduce

from trpo_jax.cli.run_flags import plan_of
from trpo_jax.running.description import as_json

REPORTS = {
    path.stem: report
    for path in sorted(reproduce.RESULTS.glob("*.json"))
    if "rows" in (report := json.loads(path.read_text()))
}
CURRENT = {
    name: report
    for name, report in REPORTS.items()
    if all("argv" in row for row in report["rows"].values())
}


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
