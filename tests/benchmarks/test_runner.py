import csv
import dataclasses
import itertools
import multiprocessing
import re
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

pytest.importorskip("sb3_contrib")
pytest.importorskip("pybullet_envs_gymnasium")

from sb3_wng.benchmarks import __main__ as command_line
from sb3_wng.benchmarks import checkpoints, runner
from sb3_wng.benchmarks.experiments import NO_CRITIC, REGULATOR
from sb3_wng.benchmarks.models import Experiment, Method, make_model
from sb3_wng.benchmarks.records import append_records
from sb3_wng.benchmarks.runner import ALREADY_FINISHED, FINISHED, PAUSED, TAKEN, Run, make_runs, run_all, train

SMALL = {"n_steps": 64, "batch_size": 32, "normalize": True}
METHODS = {
    "WNPG": Method("WNPG"),
    "NPG": Method("NPG"),
    "PG": Method("PG"),
    "BGPG": Method("BGPG", arguments={"adaptive_coef": True}),
    "BGWNPG": Method("BGWNPG"),
    "PPO": Method("PPO", arguments={"use_sde": True}),
    "TRPO": Method("TRPO"),
}
TINY = Experiment("tiny", "", METHODS, {REGULATOR: 320}, (0, 1), n_bins=5, environment_arguments={REGULATOR: SMALL})


def make_run(folder: Path, algorithm: str = "WNPG", experiment: Experiment = TINY) -> Run:
    return Run(experiment, algorithm, REGULATOR, 0, folder / "results", folder / "work")


def read(run: Run) -> list[dict[str, str]]:
    with run.csv.open(newline="") as file:
        return list(csv.DictReader(file))


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


def die_at(monkeypatch, step: int) -> None:
    original = runner.RunCallback._on_step

    def on_step(self):
        if self.num_timesteps >= step:
            raise Killed
        return original(self)

    monkeypatch.setattr(runner.RunCallback, "_on_step", on_step)


def test_a_finished_run_leaves_tidy_rows_and_is_not_repeated(tmp_path):
    run = make_run(tmp_path)
    assert train(run) == FINISHED
    rows = read(run)
    assert [row["timesteps"] for row in rows] == ["64", "128", "192", "256", "320"]
    assert {(row["experiment"], *run.key) for row in rows} == {("tiny", "WNPG", REGULATOR, "0")}
    assert all(float(row["return"]) < 0 and "torch=" in row["versions"] and "cores" in row["hardware"] for row in rows)
    assert train(run) == ALREADY_FINISHED
    assert read(run) == rows
    assert not (run.folder / "checkpoint").exists()


@pytest.mark.parametrize("algorithm", METHODS)
def test_a_killed_run_continues_from_its_checkpoint(algorithm, tmp_path, monkeypatch):
    run = make_run(tmp_path, algorithm)
    with monkeypatch.context() as patch:
        die_at(patch, 250)
        with pytest.raises(Killed):
            train(run, checkpoint_every=1)
    before, episodes, seconds = runner.load_checkpoint(run)
    assert before.num_timesteps == 192
    assert len(episodes) == 192 / 8
    assert run.steps_done() == 192
    seen = []
    original = runner.RunCallback._on_rollout_start
    monkeypatch.setattr(
        runner.RunCallback, "_on_rollout_start", lambda self: (seen.append(self.num_timesteps), original(self))
    )
    assert train(run) == FINISHED
    assert seen == [192, 256]
    rows = read(run)
    assert [row["timesteps"] for row in rows] == ["64", "128", "192", "256", "320"]
    kept = np.mean([episode_return for step, episode_return, *_ in episodes if step <= 64])
    assert float(rows[0]["return"]) == pytest.approx(kept, rel=1e-5)
    for column, before in zip(("wall_seconds", "cpu_seconds"), seconds, strict=True):
        assert float(rows[-1][column]) > before - 0.1


def test_a_checkpoint_brings_back_model_statistics_and_generators(tmp_path):
    run = make_run(tmp_path)
    run.folder.mkdir(parents=True)
    model = make_model(TINY, "WNPG", REGULATOR, 0).learn(128)
    runner.save_checkpoint(run, model, [(8, -1.0, 0.5, 0.4)], (2.0, 1.5))
    expected_draw, expected_numbers = torch.rand(3), np.random.rand(3)  # noqa: NPY002  # SB3 draws from it
    restored, episodes, seconds = runner.load_checkpoint(run)
    torch.testing.assert_close(torch.rand(3), expected_draw, rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(3), expected_numbers)  # noqa: NPY002
    assert (episodes, seconds) == ([(8, -1.0, 0.5, 0.4)], (2.0, 1.5))
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(restored.policy.state_dict()[name], value, rtol=0, atol=0)
    np.testing.assert_array_equal(restored.get_vec_normalize_env().obs_rms.mean, model.get_vec_normalize_env().obs_rms.mean)
    starts = []
    for env in (make_model(TINY, "WNPG", REGULATOR, 0).get_env(), restored.get_env()):
        env.reset()
        starts.append(env.get_original_obs())
    runner.save_checkpoint(run, model, [(8, -1.0, 0.5, 0.4)] * 2, (2.0, 1.5))
    later = runner.load_checkpoint(run)[0].get_env()
    later.reset()
    starts.append(later.get_original_obs())
    for one, other in itertools.combinations(starts, 2):  # episodes that were played are not played again
        assert not np.allclose(one, other)
    changed = dataclasses.replace(TINY, methods={"WNPG": Method("WNPG", "wnpg", {**SMALL, "gamma": 0.5})})
    with pytest.raises(ValueError, match=r"checkpoint was made by .*, and not by .*'gamma': 0.5.*: delete it to begin anew"):
        runner.load_checkpoint(dataclasses.replace(run, experiment=changed))


def test_returns_are_those_of_the_monitor_but_not_rounded(tmp_path):
    monitored = []

    class Spy(runner.RunCallback):
        def _on_step(self):
            monitored.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
            return super()._on_step()

    run = make_run(tmp_path)
    run.folder.mkdir(parents=True)
    callback = Spy(run, [], (0.0, 0.0), float("inf"), 10)
    make_model(TINY, "WNPG", REGULATOR, 0).learn(128, callback=callback)
    returns = [episode_return for _, episode_return, *_ in callback.episodes]
    np.testing.assert_allclose(returns, monitored, rtol=1e-5)
    assert any(round(value, 6) != value for value in returns)


def test_an_unfinished_checkpoint_does_not_replace_a_good_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    checkpoints.replace_file(path, b"good")

    def die(*_):
        raise Killed

    monkeypatch.setattr(checkpoints.os, "replace", die)
    with pytest.raises(Killed):
        checkpoints.replace_file(path, b"half")
    assert path.read_bytes() == b"good"


def test_a_run_pauses_at_the_deadline_and_continues(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    assert train(run, deadline=time.time() - 1) == PAUSED
    assert not run.folder.exists()
    # the clock jumps ahead at the third rollout
    clock = iter([0.0, 0.0, 0.0, 100.0])
    with monkeypatch.context() as patch:
        patch.setattr(runner, "time", SimpleNamespace(**{**vars(time), "time": lambda: next(clock)}))
        assert train(run, deadline=50.0) == PAUSED
    assert not run.csv.exists()
    assert runner.load_checkpoint(run)[0].num_timesteps == 128
    assert train(run) == FINISHED


def test_a_run_that_another_process_has_is_left_alone(tmp_path):
    run = make_run(tmp_path)
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / "lock"):
        assert train(run) == TAKEN
    assert not run.csv.exists()
    assert train(run) == FINISHED


def small_runs(folder: Path) -> list[Run]:
    return make_runs(TINY, folder / "results", folder / "work", algorithms=["NPG", "PPO"])


def train_small(folder: Path) -> list[str]:
    return [train(run) for run in small_runs(folder)]


def test_two_runners_side_by_side_do_every_run_once(tmp_path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        other = pool.submit(train_small, tmp_path)
        while not (tmp_path / "work").exists() and not other.done():
            time.sleep(0.05)
        outcomes = [train(run) for run in reversed(small_runs(tmp_path))]
        outcomes += other.result()
    assert outcomes.count(FINISHED) == 4
    assert set(outcomes) <= {FINISHED, ALREADY_FINISHED, TAKEN}
    rows = read(small_runs(tmp_path)[0])
    counts = Counter((row["algorithm"], row["environment"], row["seed"], row["timesteps"]) for row in rows)
    assert len(counts) == 4 * 5
    assert set(counts.values()) == {1}


def train_slowly(folder: Path) -> None:
    runner.train(make_run(folder, experiment=long_experiment()), checkpoint_every=1)


def long_experiment(timesteps: int = 10**7) -> Experiment:
    return Experiment("long", "", METHODS, {REGULATOR: timesteps}, (0,), n_bins=5, environment_arguments={REGULATOR: SMALL})


def test_a_process_that_is_killed_frees_its_run(tmp_path):
    run = make_run(tmp_path, experiment=long_experiment())
    process = multiprocessing.get_context("spawn").Process(target=train_slowly, args=(tmp_path,))
    process.start()
    give_up = time.time() + 60
    while run.steps_done() < 256 and time.time() < give_up:
        time.sleep(0.05)
    assert train(run) == TAKEN
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    reached = runner.load_checkpoint(run)[0].num_timesteps
    assert reached >= 128
    short = make_run(tmp_path, experiment=long_experiment(reached + 200 - reached % 5))
    assert train(short) == FINISHED


def test_a_failing_run_does_not_stop_the_others(tmp_path, capsys):
    broken = {"NPG": Method("NPG", arguments={"target_kl": -1.0}), "PPO": Method("PPO")}
    experiment = Experiment("tiny", "", broken, TINY.environments, (0,), 5, environment_arguments={REGULATOR: SMALL})
    runs = make_runs(experiment, tmp_path / "results", tmp_path / "work")
    assert not run_all(runs, jobs=1)
    output = capsys.readouterr().out
    assert "failed: ValueError: target_kl" in output
    assert {row["algorithm"] for row in read(runs[0])} == {"PPO"}
    assert "to finish:" in output


def test_a_run_that_was_finished_elsewhere_meanwhile_is_not_recorded_twice(tmp_path):
    run = make_run(tmp_path)
    elsewhere = dataclasses.replace(run, work=tmp_path / "another machine")
    original = runner._train

    def train_elsewhere_first(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "_train", original)
            assert train(elsewhere) == FINISHED
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_train", train_elsewhere_first)
        assert train(run) == ALREADY_FINISHED
    assert len(read(run)) == 5
    assert not (run.folder / "checkpoint").exists()


def test_bins_end_where_they_say():
    run = make_run(Path())
    rows = runner.records(run, [(step, float(step), 0.0, 0.0) for step in (64, 65, 128, 320, 321)])
    assert [(row["timesteps"], row["return"]) for row in rows] == [(64, "64"), (128, "96.5"), (320, "320")]


def test_a_run_named_twice_is_run_once(tmp_path):
    runs = make_runs(TINY, tmp_path, tmp_path, ["WNPG", "WNPG"], [REGULATOR, REGULATOR], [0, 0])
    assert len(runs) == 1


def test_a_run_in_which_no_episode_ends_has_no_rows(tmp_path):
    assert runner.records(make_run(tmp_path), []) == []


def test_new_columns_do_not_break_old_files(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("experiment,return,versions\nold,1.50,python=3\n")
    append_records(path, [{"experiment": "new", "return": "2", "more": 1}])
    rows = list(csv.DictReader(path.open(newline="")))
    assert rows[0] == {"experiment": "old", "return": "1.50", "versions": "python=3", "more": "", "hardware": ""}
    assert rows[1]["more"] == "1"
    assert rows[1]["hardware"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "first_learning", "--algorithms", "SAC"], r"first_learning has no \['SAC'\]; it has \['WNPG'"),
        (["run", "first_learning", "--environments", "Ant"], r"--environments: first_learning has no \['Ant'\]"),
        (["run", "nonsense"], "invalid choice: 'nonsense'"),
        (["run", "first_learning", "--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message, tmp_path, capsys):
    try:
        code = command_line.main([*arguments, "--results", str(tmp_path)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_report_of_nothing_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["report", "--results", str(tmp_path / "missing")])
    assert "missing has no results: run an experiment first" in capsys.readouterr().err


def test_the_list_counts_finished_runs(capsys, tmp_path):
    row = {"algorithm": "NPG", "environment": "HopperBulletEnv-v0", "timesteps": 1}
    append_records(tmp_path / "first_learning.csv", [{**row, "seed": 30}, {**row, "seed": 99}])
    assert command_line.main(["list", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"first_learning +1/36 runs", printed)
    assert re.search(r"policy_gradients +0/520 runs", printed)
    assert "svpg_study " in printed


def test_a_study_after_other_arguments_is_told_apart(capsys):
    assert command_line.main(["run", "--jobs", "2", "unseen_states"]) == 2
    assert "name the study first: run unseen_states" in capsys.readouterr().err


@pytest.mark.parametrize("study", command_line.STUDIES)
def test_studies_are_run_by_name_with_arguments_of_their_own(study, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kept"])
    with pytest.raises(SystemExit) as stop:
        command_line.main(["run", study, "--help"])
    assert stop.value.code == 0
    assert f"usage: {study}.py" in capsys.readouterr().out


def test_a_policy_without_critic_stays_without_one_and_learns(tmp_path):
    settings = {**SMALL, **NO_CRITIC, "normalize": False}
    experiment = Experiment("bare", "", METHODS, {REGULATOR: 320}, (0,), 5, environment_arguments={REGULATOR: settings})
    for algorithm in ("NPG", "PPO", "TRPO"):
        model = make_model(experiment, algorithm, REGULATOR, 0)
        before = model.policy.action_net.weight.clone()
        model.learn(128)
        assert (model.policy.predict_values(torch.randn(5, 4)) == 0).all()
        assert (model.policy.action_net.weight != before).any()
