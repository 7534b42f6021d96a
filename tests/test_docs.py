"""The code of the documentation runs."""

import re
from pathlib import Path

import pytest

import trpo_jax

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("getting-started", "natural-gradient"))]


def run(page):
    """Runs the code of a page from top to bottom, and returns its names."""
    names = {}
    for code in FENCE.findall((ROOT / page).read_text(encoding="utf-8")):
        exec(compile(code, page, "exec"), names)
    return names


def test_the_code_of_how_trpo_works_takes_a_step_inside_the_trust_region():
    assert 0 < run("docs/how-trpo-works.md")["info"].kl <= 0.01


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {"total_steps": 4_096, "evaluation_episodes": 2, "progress": False}
    train = trpo_jax.train
    monkeypatch.setattr(trpo_jax, "train", lambda *args, **more: train(*args, **more, **short))
    run(page)
