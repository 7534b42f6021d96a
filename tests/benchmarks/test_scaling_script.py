"""The cost model of split environments, and the page that scaling.py writes."""

import numpy as np
import pytest
import scaling
from scaling_model import (
    Machine,
    Setting,
    all_reduce_seconds,
    between,
    iteration,
    most_devices,
    update,
)

MACHINE = Machine("a machine", 1e12, 1e12, 4, (100e9, 10e9), (1e-5, 2e-5))
SETTING = Setting(8.0, num_states=1000)
SPEED = {
    "device": {"kind": "cpu", "cores": 2},
    "versions": {"trpo_jax": "1.0"},
    "training": {
        "seeds": [{"num_seeds": n, "vmap": rate} for n, rate in ((1, 100.0), (64, 300.0))],
        "environments": [
            {"env": "A", "num_envs": n, "num_steps": 10, "parameters": 5000, "training": rate}
            for n, rate in ((8, 1e3), (64, 4e3), (512, 4e3))
        ],
    },
}


def test_a_sum_over_devices_costs_what_a_ring_sends():
    assert all_reduce_seconds(MACHINE, 1e6, 1) == 0
    # Two devices exchange halves, twice.
    np.testing.assert_allclose(all_reduce_seconds(MACHINE, 1e6, 2), 1e-5 + 1e6 / 100e9)
    # Four nodes of four: first inside, then each device exchanges a quarter of the array.
    inside = 1e-5 + 2 * 3 / 4 * 1e6 / 100e9
    across = 2 * 2e-5 + 2 * 3 / 4 * 1e6 / 4 / 10e9
    np.testing.assert_allclose(all_reduce_seconds(MACHINE, 1e6, 16), inside + across)


def test_an_iteration_sums_the_parameters_once_and_shares_the_states():
    alone, four = (iteration(MACHINE, SETTING, 5000, n) for n in (1, 4))
    np.testing.assert_allclose(alone.shared, 8 * 5000 * 1000 / 1e12)
    np.testing.assert_allclose(four.shared, alone.shared / 4)
    np.testing.assert_allclose(four.common - alone.common, all_reduce_seconds(MACHINE, 20_000, 4))
    np.testing.assert_allclose(four.efficiency, four.shared / sum(four))
    thinned = iteration(MACHINE, SETTING._replace(subsample=5), 5000, 4)
    np.testing.assert_allclose(thinned.shared, four.shared / 5)
    assert thinned.common == four.common


def test_an_update_sums_for_each_minibatch_of_the_critic():
    base = update(MACHINE, SETTING, 5000, 4)
    fewer = update(MACHINE, SETTING._replace(critic_minibatches=4), 5000, 4)
    sums = 12 * 10 * all_reduce_seconds(MACHINE, 20_000, 4)
    np.testing.assert_allclose(base.common - fewer.common, sums)
    np.testing.assert_allclose(base.shared, fewer.shared)
    step = update(MACHINE, SETTING._replace(critic_minibatches=0), 5000, 4)
    sums = (160 - 11) * all_reduce_seconds(MACHINE, 20_000, 4)
    np.testing.assert_allclose(base.common - step.common, sums)


@pytest.mark.parametrize("batch", [2**12, 2**16])
def test_a_bigger_batch_moves_the_point_in_proportion(batch):
    cost = lambda states: (
        lambda n: iteration(
            MACHINE._replace(latencies=(1e-5, 0.0), bandwidths=(1e15, 1e15), memory=1e15),
            SETTING._replace(num_states=states),
            5000,
            n,
        )
    )
    found = most_devices(cost(batch))
    assert 1 < found < 2**19
    assert most_devices(cost(2 * batch)) == 2 * found


def test_the_page_says_what_was_measured_and_what_is_calculated():
    row = {"num_params": 4548, "num_states": 64, "solve_seconds": [0.1, 0.3, 0.2]}
    row |= {"vectors_seconds": [0.02], "sums_seconds": [0.01], "collectives": [["all-reduce", 99]]}
    both = row | {"solve_seconds": [0.15]}
    report = {"command": ["experiments/benchmarks/scaling.py"], "device": {"kind": "cpu"}}
    report |= {"versions": {"jax": "1.2"}, "measured": [[row], [both]]}
    text = "\n".join(scaling.page(report, Setting(6.0), SPEED))
    assert "| 4,548 | 64 | 99 | 200.0 | 20.0 | 10.0 | 150.0 | 120.0 |" in text
    assert "1.2 to 1.2 times" in text
    for name in scaling.NETS:
        assert f"| {name} |" in text
    assert "160 are for the critic" in text
    assert scaling.figure(Setting(6.0)).axes[1].get_title(loc="left") == "a whole update"


def test_devices_like_the_measured_one_take_its_times_and_the_calculated_sums():
    seeds, envs = scaling.device_rates(SETTING, SPEED).values()
    # One device has 64 seeds, 8 devices have 8 each, and 64 devices have one each.
    np.testing.assert_allclose(seeds, [300, 8 * 100 * 3**0.5, 64 * 100])
    sums = [update(scaling.H100, SETTING, 5000, n).common for n in (8, 64)]
    seconds = [512 * 10 / 4e3, 64 * 10 / 4e3 + sums[0], 8 * 10 / 1e3 + sums[1]]
    np.testing.assert_allclose(envs, 5120 / np.array(seconds))


def test_a_speed_outside_of_the_measured_sizes_is_refused():
    assert between([1, 100], [1, 10], 10) == pytest.approx(10**0.5)
    with pytest.raises(ValueError, match="size 200"):
        between([1, 100], [1, 10], 200)


def test_a_file_without_speeds_of_training_is_refused(tmp_path, capsys):
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--speed", str(tmp_path / "speed.json")])
    assert "--parts training" in capsys.readouterr().err
