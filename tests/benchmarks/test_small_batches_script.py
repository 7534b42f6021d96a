import json
import re
from contextlib import closing

import numpy as np
import pytest
import small_batches

import trpo_jax
from trpo_jax.cli.compare import parse_variant
from trpo_jax.running.description import config_to_dict
from trpo_jax.running.evaluation import Played
from trpo_jax.running.loop import advance_chunks, compile_program

TINY = ["--num-seeds", "2", "--checks", "2", "--episodes", "4"]
CARTPOLE = ["--envs", "CartPole-v1", "--algorithms", "trpo", "--total-steps", "512"]


@pytest.mark.slow
def test_it_measures_every_variant_and_keeps_its_rows(tmp_path, capsys, monkeypatch):
    argv = [*CARTPOLE, "--batches", "64", *TINY, "--out", str(tmp_path / "out")]
    assert small_batches.main(argv) == 0
    assert "batch    64  trpo" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "small_batches.json").read_text())["table"]
    assert row["batch"] == 64
    assert len(row["per_seed"]) == 2
    assert 0 <= row["fell_clearly"] <= row["fell"] <= 1
    table = (tmp_path / "out" / "small_batches.md").read_text()
    assert re.search(r"\| 64 \| trpo \| `trpo` \| \S+ \| range \S+ to \S+ \|", table)
    assert f"Versions: trpo_jax {trpo_jax.__version__}, " in table

    monkeypatch.setattr(small_batches, "checked_run", None)  # the second call must not train
    assert small_batches.main(argv) == 0
    with pytest.raises(SystemExit) as stop:
        small_batches.main([*argv, "--seed", "3"])
    assert stop.value.code == 2
    assert "is the result of another command" in capsys.readouterr().err

    file = tmp_path / "out" / "small_batches.json"
    file.write_text(file.read_text().replace('"settings": "trpo"', '"settings": "trpo --c 1"'))
    with pytest.raises(TypeError):  # the variant has other settings now, so it is trained again
        small_batches.main(argv)


def test_variants_differ_in_nothing_that_trpo_has():
    args = small_batches.build_parser().parse_args([])
    variants = [parse_variant(text) for text in ("trpo", "ua_trpo --c 100", "ppo --gamma 0.5")]
    for env in ("Pendulum-v1", "Breakout-MinAtar"):
        trpo, ua_trpo, ppo = (small_batches.prepare(args, env, 128, v).config for v in variants)
        assert config_to_dict(ua_trpo).items() >= config_to_dict(trpo).items()
        assert ua_trpo.c == 100
        assert (ppo.gae_lambda, ppo.gamma) == (trpo.gae_lambda, 0.5)


@pytest.mark.parametrize(
    "flags", [["--batches", "65"], ["--batches", "512"], ["--episodes", "0", "--batches", "64"]]
)
def test_what_cannot_be_measured_is_refused(flags, tmp_path, capsys):
    argv = [*CARTPOLE, *TINY, *flags]
    with pytest.raises(SystemExit) as stop:
        small_batches.main([*argv, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "cannot be measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_batch_without_published_variants_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        small_batches.main(["--batches", "64"])
    assert stop.value.code == 2
    assert "no variants for a batch of 64 on Pendulum-v1" in capsys.readouterr().err


def test_the_command_without_arguments_has_variants_for_every_environment_and_batch():
    args = small_batches.build_parser().parse_args([])
    assert {(env, batch) for env in args.envs for batch in args.batches} == {
        *small_batches.VARIANTS
    }


@pytest.mark.parametrize("env, batch", small_batches.VARIANTS)
def test_the_published_variants_can_run(env, batch):
    args = small_batches.build_parser().parse_args([])
    for variant in small_batches.variants_of(args, env, batch):
        run = small_batches.prepare(args, env, batch, variant)
        assert run.config.num_envs * run.config.num_steps == batch


def test_an_update_fell_clearly_if_by_more_than_two_standard_errors():
    changes = small_batches.Changes(
        difference=np.array([[-3.0, -1.0, 0.0, 5.0]]),
        error=np.array([[1.0, 1.0, 0.0, 1.0]]),
        rejected=np.array([[0.0, 0.0, 1.0, 0.0]]),
    )
    row = small_batches.describe(np.array([1.0]), changes)
    assert (row["fell"], row["fell_clearly"], row["rejected"]) == (0.5, 0.25, 0.25)
    assert row["mean_change"] == 0.25


@pytest.mark.slow
def test_a_difference_compares_the_policy_after_an_update_with_the_policy_before(monkeypatch):
    args = small_batches.build_parser().parse_args([*CARTPOLE, *TINY])
    run = small_batches.prepare(args, "CartPole-v1", 64, parse_variant("trpo"))
    size = lambda actor: np.linalg.norm(
        actor.policy_params["layers_0"]["Dense_0"]["kernel"], axis=(1, 2)
    )
    with closing(compile_program(run.algorithm, run.seeds, updates_per_chunk=1)) as program:
        sizes = [size(chunk.actor) for chunk in advance_chunks(program, run.num_updates)]
    play = lambda actor, seeds, number: Played(np.tile(size(actor)[:, None], (1, 4)), ())
    monkeypatch.setattr(small_batches, "make_evaluation", lambda *args, **flags: play)
    _, changes = small_batches.checked_run(run, args.checks, args.episodes)
    expected = [sizes[3] - sizes[2], sizes[7] - sizes[6]]  # the fourth and the eighth update
    np.testing.assert_allclose(changes.difference.T, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).min() > 1e-5
