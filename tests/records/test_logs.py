import csv
import errno
import re
import struct
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.installing import how_to_install
from trpo_jax.records.logs import (
    column_order,
    csv_log,
    require_service,
    tagged,
    tensorboard_log,
    wandb_log,
)
from trpo_jax.running.loop import Chunk
from trpo_jax.running.recorder import chunk_columns, rows_of

NAN = np.nan


def rows(first_update, seconds_before, seconds, returns):
    returns = np.array(returns, np.float32)
    metrics = {
        "kl": np.full(returns.shape, 0.01, np.float32),
        "episodic_return": returns,
        "episode_length": returns,
        "num_episodes": np.float32(~np.isnan(returns)),
    }
    last_update = first_update + returns.shape[1] - 1
    chunk = Chunk(first_update, last_update, metrics, None, None, None, seconds)
    return rows_of(chunk_columns(chunk, (4, 5), 100, seconds_before))


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_csv_rows_are_in_order_and_on_disk_after_each_write(tmp_path):
    path = tmp_path / "metrics.csv"
    log = csv_log(path)
    log.write(rows(1, 0.0, 2.0, [[1.5, NAN], [3.0, 4.0]]))
    assert len(read(path)) == 4
    log.write(rows(3, 2.0, 6.0, [[1.0, 2.0], [3.0, 4.0]]))
    log.close()
    table = read(path)
    assert list(table[0])[:5] == ["seed", "update", "env_steps", "seconds", "episodic_return"]
    assert [row["seed"] for row in table] == ["4", "5"] * 4
    assert [row["update"] for row in table[::2]] == ["1", "2", "3", "4"]
    assert [row["env_steps"] for row in table[::2]] == ["100", "200", "300", "400"]
    assert [float(row["seconds"]) for row in table[::2]] == [1.0, 2.0, 4.0, 6.0]
    assert [row["episodic_return"] for row in table[:4]] == ["1.5", "3", "", "4"]


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        csv_log(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("torn", ["", "4,5,5", "4,5,500,9.0,1,1,1,0.01\r\n"])
def test_a_resumed_csv_file_equals_an_uninterrupted_one(tmp_path, torn):
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    parts = [rows(1, 0.0, 2.0, [[1, 2], [3, 4]]), rows(3, 2.0, 6.0, [[5, NAN], [7, 8]])]
    for path in (whole, resumed):
        log = csv_log(path)
        for part in parts:
            log.write(part)
        log.close()
    resumed.write_bytes(resumed.read_bytes() + torn.encode())
    log = csv_log(resumed, num_done=2)
    log.write(parts[1])
    log.close()
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_csv_file_without_rows_to_keep_begins_anew(tmp_path):
    path = tmp_path / "metrics.csv"
    for num_done in (None, -1, 0):
        log = csv_log(path, num_done)
        log.write(rows(1, 0.0, 2.0, [[1], [3]]))
        log.close()
        assert len(read(path)) == 2


def test_tags_have_the_names_of_cleanrl():
    row = {"seed": 4, "update": 2, "env_steps": 200, "seconds": 4.0, "episodic_return": 3.0}
    row |= {"episode_length": NAN, "critic_loss": 0.5, "kl": 0.01, "cg_residual": 0.2}
    assert tagged(row) == {
        "charts/episodic_return": 3.0,
        "charts/SPS": 50.0,
        "losses/value_loss": 0.5,
        "losses/approx_kl": 0.01,
        "losses/cg_residual": 0.2,
    }


def events(folder):
    """Yields the events in the event files of a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # then 4 bytes of checksum, and 4 at the end
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def summaries(folder):
    """Returns all summary values in the event files of a folder."""
    return [value for event in events(folder) for value in event.summary.value]


def scalars(folder):
    """Returns `{(tag, step): value}` of the event files in a folder."""
    return {(v.tag, x.step): v.simple_value for x in events(folder) for v in x.summary.value}


def test_tensorboard_has_one_series_for_each_seed(tmp_path):
    log = tensorboard_log(tmp_path, (4, 5), DESCRIPTION)
    log.write(rows(1, 0.0, 2.0, [[1.5, NAN], [3.0, 4.0]]))
    last, deadline = ("charts/episodic_return", 200), time.monotonic() + 60
    found = scalars(tmp_path / "seed_5")
    while last not in found and time.monotonic() < deadline:
        time.sleep(0.1)  # a thread writes the rows
        found = scalars(tmp_path / "seed_5")
    log.close()
    assert found[last] == 4.0  # before the log is closed
    assert ("charts/episodic_return", 200) not in scalars(tmp_path / "seed_4")
    np.testing.assert_allclose(found["losses/approx_kl", 100], 0.01)


def test_the_error_of_a_full_disk_names_the_tensorboard_folder(tmp_path, monkeypatch):
    tensorboardX = pytest.importorskip("tensorboardX")

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = tensorboard_log(tmp_path / "board", (4, 5), DESCRIPTION)
    with monkeypatch.context() as patch:
        patch.setattr(tensorboardX.SummaryWriter, "flush", full)
        with pytest.raises(StorageFailure, match=r"board cannot be written: No space left"):
            log.write(rows(1, 0.0, 2.0, [[1.5, NAN], [3.0, 4.0]]))
    log.close()


def test_tensorboard_shows_the_hyperparameters(tmp_path):
    plugin = pytest.importorskip("tensorboardX.proto.plugin_hparams_pb2")
    tensorboard_log(tmp_path, (4, 5), DESCRIPTION).close()
    tensorboard_log(tmp_path / "resumed", (4, 5), DESCRIPTION, steps_done=200).close()
    assert not summaries(tmp_path / "resumed/seed_5")
    (start,) = [
        plugin.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for value in summaries(tmp_path / "seed_5")
        if value.tag == "_hparams_/session_start_info"
    ]
    found = start.session_start_info.hparams
    assert found["max_kl"].number_value == 0.01
    assert found["seed"].number_value == 5
    assert found["hidden_sizes"].string_value == "[64, 64]"
    assert found["env_id"].string_value == "CartPole-v1"


class FakeRun(SimpleNamespace):
    def log(self, numbers):
        self.logged.append(numbers)

    def define_metric(self, name, step_metric):
        self.steps = name, step_metric

    def finish(self):
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch):
    fake = SimpleNamespace(runs=[], mode="online", key=False, Settings=SimpleNamespace)
    fake.setup = lambda settings=None: SimpleNamespace(settings=SimpleNamespace(mode=fake.mode))
    fake.login = lambda prompt: fake.key

    def init(**options):
        fake.runs.append(FakeRun(options=options, logged=[], finished=False))
        return fake.runs[-1]

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


DESCRIPTION = {
    "env": "CartPole-v1",
    "algorithm": "trpo",
    "total_steps": 400,
    "config": {"max_kl": 0.01, "hidden_sizes": [64, 64]},
    "started": "2026-01-01T00:00:00+00:00",
}


def test_wandb_has_one_run_for_each_seed(fake_wandb, tmp_path):
    log = wandb_log(tmp_path, (4, 5), DESCRIPTION)
    log.write(rows(1, 0.0, 2.0, [[1.5, NAN], [3.0, 4.0]]))
    log.close()
    first, second = fake_wandb.runs
    assert first.options["config"] == {
        "env_id": "CartPole-v1",
        "exp_name": "trpo",
        "seed": 4,
        "total_timesteps": 400,
        "max_kl": 0.01,
        "hidden_sizes": [64, 64],
    }
    assert first.options["group"] == second.options["group"]
    assert first.options["id"] != second.options["id"]
    assert [x["global_step"] for x in second.logged] == [100, 200]
    assert second.logged[1]["charts/episodic_return"] == 4.0
    assert first.steps == ("*", "global_step")
    assert first.finished


def test_the_error_for_a_missing_wandb_key_names_the_offline_mode(fake_wandb):
    with pytest.raises(ConfigurationError, match="WANDB_MODE=offline"):
        require_service("wandb")
    fake_wandb.mode = "offline"
    require_service("wandb")
    fake_wandb.mode, fake_wandb.key = "online", True
    require_service("wandb")


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_the_error_for_a_missing_service_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    with pytest.raises(ConfigurationError, match=re.escape(how_to_install(name))):
        require_service(name)


def test_cost_columns_follow_their_return_and_have_tags(tmp_path):
    names = ["kl", "episodic_return", "episodic_cost_b", "episodic_cost_a", "episode_length"]
    expected = ["episodic_return", "episodic_cost_b", "episodic_cost_a", "episode_length", "kl"]
    assert column_order(names) == expected
    names = ["evaluation_cost", "evaluation_seconds", "evaluation_return", "evaluation_a"]
    expected = ["evaluation_a", "evaluation_return", "evaluation_cost", "evaluation_seconds"]
    assert column_order(names) == expected
    row = {"seconds": 0.0, "episodic_cost_a": 3.0, "evaluation_cost": 2.0, "cost_excess": 1.0}
    assert tagged(row) == {
        "charts/episodic_cost_a": 3.0,
        "eval/episodic_cost": 2.0,
        "losses/cost_excess": 1.0,
    }
