"""Tests that all files name the same version of the library."""

import re
import tomllib
from pathlib import Path

import pytest

import trpo_jax

ROOT = Path(__file__).parents[1]
VERSIONS = {  # by file: a pattern that finds the version
    "CITATION.cff": r"^version: (\S+)$",
    "README.md": r"^  note = \{Version (\S+)\}$",
    "docs/citing.md": r"^  note = \{Version (\S+)\}$",
    "CHANGELOG.md": r"^## (\d\S*) - ",  # the newest section
}


def found(file, pattern):
    return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_project_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == trpo_jax.__version__


@pytest.mark.parametrize("file", VERSIONS)
def test_a_file_names_the_version_of_the_package(file):
    assert found(file, VERSIONS[file])[0] == trpo_jax.__version__


def test_the_changelog_goes_from_the_newest_version_to_the_oldest():
    sections = found("CHANGELOG.md", r"^## (\d+)\.(\d+)\.(\d+) - \d{4}-\d{2}-\d{2}$")
    numbers = [tuple(map(int, section)) for section in sections]
    assert numbers == sorted(set(numbers), reverse=True)
    assert len(numbers) == len(found("CHANGELOG.md", r"^## \d"))


@pytest.mark.parametrize("file", ["README.md", "docs/citing.md"])
def test_a_page_shows_the_entry_that_the_library_returns(file):
    assert trpo_jax.citation() in (ROOT / file).read_text(encoding="utf-8")


def test_the_citation_file_has_the_date_of_the_version():
    (date,) = found("CITATION.cff", r"^date-released: (\S+)$")
    assert found("CHANGELOG.md", r"^## \d\S* - (\S+)$")[0] == date
