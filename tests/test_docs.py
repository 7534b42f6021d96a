"""The code of the documentation runs."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_code_of_how_trpo_works_runs_from_top_to_bottom():
    names = {}
    for code in FENCE.findall((DOCS / "how-trpo-works.md").read_text()):
        exec(compile(code, "how-trpo-works.md", "exec"), names)
    assert 0 < names["info"].kl <= 0.01
