import re

import interval_coverage
import numpy as np
from scipy import stats


def test_it_writes_a_table_of_every_kind_of_interval(tmp_path, monkeypatch):
    few = {"RESAMPLES": 9, "SEEDS": (3, 10), "SEVERAL": (3,), "EPISODES": 12, "TRUTH": 1000}
    for name, value in few.items():
        monkeypatch.setattr(interval_coverage, name, value)
    out = tmp_path / "new" / "coverage.md"
    assert interval_coverage.main(["--repeats", "4", "--out", str(out)]) == 0
    text = out.read_text()
    assert f"interval_coverage.py --repeats 4 --out {out}" in text
    number = r"\d+\.\d \(\d+\.\d\d\)"
    assert len(re.findall(rf"\| normal \| \d+ (\| {number} ){{3}}\|\n", text)) == 3
    assert len(re.findall(rf"\| half learn \| \d+ (\| {number} ){{5}}\|\n", text)) == 2
    assert len(re.findall(r"\| exponential \| 7 \| 3 (\| \d+\.\d / \d+\.\d ){6}\|\n", text)) == 1


def test_bootstraps_are_those_of_scipy(monkeypatch):
    monkeypatch.setattr(interval_coverage, "RESAMPLES", 20_000)
    scores = np.random.default_rng(0).exponential(size=(12, 1))
    found = interval_coverage.bootstraps(scores, np.mean, np.random.default_rng(1))
    for name, method in (("percentile bootstrap", "percentile"), ("BCa bootstrap", "bca")):
        theirs = stats.bootstrap(
            (scores[:, 0],), np.mean, method=method, random_state=0
        ).confidence_interval
        np.testing.assert_allclose(np.ravel(found[name]), theirs, atol=0.07)
