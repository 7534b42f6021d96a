import json
import shutil

import jax
import numpy as np
import pytest

from trpo_jax import envs
from trpo_jax.algorithms import vpg
from trpo_jax.errors import ConfigurationError, StorageFailure
from trpo_jax.records.checkpoints import Checkpoints, digest, to_arrays, to_state
from trpo_jax.running.loop import compile_program, resume_program, run_chunks

CONFIG = {"num_envs": 2, "num_steps": 8, "hidden_sizes": (8,), "critic_minibatches": 2}
WEIGHTS, NONE = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 2), np.float32)
STATE = {"weights": WEIGHTS, "none": NONE, "flag": np.array(True), "bytes": np.uint8([0, 1, 2])}
STATE = jax.device_put(STATE) | {"key": jax.random.key(3)}


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield opened
    opened.close()


def assert_same(a, b):
    a, b = to_arrays(a), to_arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def test_a_state_comes_back_as_it_was(checkpoints):
    checkpoints.save(7, STATE, 1.5, {"env": "CartPole-v1"})
    saved = checkpoints.read(7)
    assert (saved.num_updates, saved.seconds) == (7, 1.5)
    assert saved.description == {"env": "CartPole-v1"}
    state = to_state(jax.eval_shape(lambda: STATE), saved.arrays)
    assert_same(state, STATE)
    assert state["none"].shape == (0, 2)
    assert jax.random.bits(state["key"]) == jax.random.bits(STATE["key"])


def test_the_latest_checkpoints_and_the_best_one_are_kept(checkpoints, tmp_path):
    for number, score in enumerate([1.0, 9.0, None, 3.0, None, None]):
        scores = () if score is None else (score,)
        checkpoints.save(number, STATE, 0.0, {}, *scores)
    assert checkpoints.numbers() == [1, 4, 5]
    assert checkpoints.best() == 1
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert again.best() == 1
    again.close()


def test_the_best_checkpoint_keeps_its_limits_if_one_does(checkpoints, tmp_path):
    for number, (score, excess) in enumerate([(9.0, 3.0), (8.0, 2.0), (1.0, 4.0)]):
        checkpoints.save(number, STATE, 0.0, {}, score, excess)
    assert checkpoints.best() == 1  # no checkpoint keeps its limits
    for number, score in ((3, 2.0), (4, 1.0), (5, 0.0)):
        checkpoints.save(number, STATE, 0.0, {}, score, 0.0)
    checkpoints.save(6, STATE, 0.0, {})
    assert checkpoints.best() == 3
    assert checkpoints.numbers() == [3, 5, 6]
    metrics = tmp_path / "checkpoints" / "5" / "metrics" / "metrics"
    assert json.loads(metrics.read_text())["evaluation_excess"] == 0
    metrics.write_text('{"evaluation_return": 3.0}')  # as older files have it
    again = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert again.best() == 5
    again.close()


def test_no_checkpoint_is_the_best_without_an_evaluation(checkpoints):
    assert checkpoints.best() is None
    checkpoints.save(1, STATE, 0.0, {})
    assert checkpoints.best() is None


def damage(folder, how):
    data = (path for path in (folder / "state").rglob("d/*") if path.is_file())
    largest = max(data, key=lambda path: path.stat().st_size)
    match how:
        case "cut":
            largest.write_bytes(largest.read_bytes()[:-20])
        case "flipped":
            content = bytearray(largest.read_bytes())
            content[len(content) // 2] ^= 1
            largest.write_bytes(content)
        case "gone":
            largest.unlink()
        case "about":
            (folder / "about" / "metadata").write_text("{")
        case "of an earlier update":  # readable, but wrong
            shutil.rmtree(folder)
            shutil.copytree(folder.parent / "1", folder)
        case "metrics":
            (folder / "metrics" / "metrics").write_text('{"evaluation_return": ')
        case "score":  # readable, but wrong
            (folder / "metrics" / "metrics").write_text('{"evaluation_return": 9.0}')
        case "metadata":
            (folder / "_CHECKPOINT_METADATA").write_text("[]")
        case "of another":  # readable, but wrong
            shutil.rmtree(folder / "state")
            shutil.copytree(folder.parent / "1" / "state", folder / "state")


HOW = ["cut", "flipped", "gone", "about", "of another", "of an earlier update", "metrics"]


@pytest.mark.parametrize("how", [*HOW, "score", "metadata"])
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_is_read(checkpoints, tmp_path, how):
    checkpoints.save(1, STATE | {"weights": -STATE["weights"]}, 0.0, {})
    checkpoints.save(2, STATE, 0.0, {})
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "2", how)
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    failure, saved = again.newest_first()
    assert isinstance(failure, StorageFailure)
    assert "2 is damaged" in str(failure)
    assert saved.num_updates == 1
    assert (tmp_path / "checkpoints" / "damaged-2").is_dir()
    again.save(2, STATE, 0.0, {})
    assert again.numbers() == [1, 2]
    again.close()


def test_reading_checkpoints_changes_nothing_in_their_folder(checkpoints, tmp_path):
    checkpoints.save(1, STATE, 0.0, {})
    checkpoints.save(2, STATE, 0.0, {})
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # a run is writing this one
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "metrics")
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()  # and removing this one
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert reader.read(2).num_updates == 2
    reader.close()
    (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text("")
    with pytest.raises(ConfigurationError, match=r"checkpoints/2 is damaged\. Move it"):
        Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_version_is_refused_and_kept(checkpoints, tmp_path):
    checkpoints.save(1, STATE, 0.0, {})
    path = tmp_path / "checkpoints" / "1" / "about" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    with pytest.raises(ConfigurationError, match="has format 1, and this version reads"):
        next(checkpoints.newest_first())
    assert checkpoints.numbers() == [1]


def test_an_unfinished_checkpoint_is_not_listed(checkpoints, tmp_path):
    checkpoints.save(1, STATE, 0.0, {})
    checkpoints.close()
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert again.numbers() == [1]
    again.close()


def test_a_half_removed_checkpoint_is_removed(checkpoints, tmp_path, caplog):
    for number in (1, 2):
        checkpoints.save(number, STATE, 0.0, {})
    checkpoints.close()
    for number in (1, 2):  # the newest checkpoint is damaged, not a leftover
        (tmp_path / "checkpoints" / str(number) / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.numbers() == [1, 2]
    checkpoints.save(3, STATE, 0.0, {})
    checkpoints.close()
    caplog.clear()
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert again.numbers() == [3]
    assert not caplog.records
    again.close()


def test_arrays_of_another_state_are_refused_with_the_names_that_differ(checkpoints):
    checkpoints.save(1, STATE, 0.0, {})
    other = STATE | {"weights": np.zeros((2, 4), np.float32)}
    with pytest.raises(ConfigurationError, match=r"weights: \(\(2, 3\), 'float32'\), not \(\(2, 4"):
        to_state(other, checkpoints.read(1).arrays)
    with pytest.raises(ConfigurationError, match=r"extra: None"):
        to_state(STATE | {"extra": np.zeros(1, np.float32)}, checkpoints.read(1).arrays)


def test_a_digest_depends_on_the_names_and_the_contents_of_files(tmp_path):
    digests = set()
    for number, (name, content) in enumerate([("a", b"12"), ("a", b"13"), ("b", b"12")]):
        folder = tmp_path / str(number)
        (folder / "c").mkdir(parents=True)
        (folder / "c" / name).write_bytes(content)
        digests.add(digest(folder))
    assert len(digests) == 3


@pytest.mark.usefixtures("shared_programs")
def test_a_resumed_run_is_equal_bit_for_bit(checkpoints):
    """VPG is compiled faster than others. Its states have moments of Adam for both networks."""
    algorithm = vpg.make(envs.make("CartPole-v1"), vpg.Config(**CONFIG))
    chunks = []
    for chunk in run_chunks(compile_program(algorithm, (3, 4), 2), 6):
        chunks.append(chunk)
        if chunk.last_update == 2:
            checkpoints.save(2, chunk.state, chunk.seconds, {})
    fresh = compile_program(algorithm, (3, 4), 2, num_done=2)
    saved = checkpoints.read(2)
    program = resume_program(fresh, to_state(fresh.state, saved.arrays))
    resumed = list(run_chunks(program, 6, saved.num_updates, saved.seconds))
    assert [chunk.first_update for chunk in resumed] == [3, 5]
    assert resumed[0].seconds > saved.seconds
    for a, b in zip(resumed, chunks[1:], strict=True):
        for name, values in a.metrics.items():
            np.testing.assert_array_equal(values, b.metrics[name], err_msg=name)
    assert_same(resumed[-1].state, chunks[-1].state)
