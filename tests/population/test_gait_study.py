"""Pairs are trained as the shipped settings say, what they do is measured, and it can be drawn from what was saved."""

from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest
import torch

pytest.importorskip("pybullet_envs_gymnasium")
pytest.importorskip("pandas")

import pandas as pd

from sb3_wng import WNPG
from sb3_wng.behavior import Trajectory
from sb3_wng.benchmarks import gait_study, pool
from sb3_wng.benchmarks.multipolicy_report import gaits_table
from sb3_wng.benchmarks.records import append_records


def test_copies_are_trained_once_their_original_is(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(pool, "ProcessPool", ThreadPoolExecutor)
    monkeypatch.setattr(gait_study, "train_single", lambda seed, folder: calls.append(seed))
    monkeypatch.setattr(gait_study, "run", lambda seed, name, folder: calls.append((seed, name)))
    append_records(tmp_path / "multipolicy_gaits.csv", [{"algorithm": "copies", "seed": 1}])
    pairs = ["--pairs", "repelled", "copies"]
    monkeypatch.setattr("sys.argv", ["", "--seeds", "1", "2", *pairs, "--folder", str(tmp_path)])
    assert gait_study.main() == 0
    assert calls == [2, (1, "repelled"), (2, "repelled"), (2, "copies")]


def test_a_gait_is_posture_and_contacts():
    env = gymnasium.make(gait_study.ENVIRONMENT)
    env.reset()
    robot = env.unwrapped.robot
    assert [robot.foot_list[index - 20] for index in (gait_study.FRONT, gait_study.HIND)] == ["ffoot", "bfoot"]
    seen = torch.zeros(4, 26)
    seen[:, 7], seen[:, 8:20:2], seen[:, 9:20:2] = 0.5, torch.arange(6.0), 100.0
    seen[:3, 20] = 1.0
    point = gait_study.gait(Trajectory(seen, torch.zeros(4, 6), torch.zeros(4)))
    torch.testing.assert_close(point, torch.tensor([0.5, 0, 1, 2, 3, 4, 5, 0.75, 0, 0, 0, 0, 0]))


def test_a_pair_is_trained_measured_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(gait_study, "N_STEPS", 1024)
    monkeypatch.setattr(gait_study, "N_EPISODES", 1)
    monkeypatch.setattr(gait_study, "N_WINDOWS", 8)
    gait_study.run(3, "repelled", tmp_path)
    (row,) = pd.read_csv(tmp_path / "multipolicy_gaits.csv").itertuples()
    assert (row.algorithm, row.seed, row.timesteps) == ("repelled", 3, 2048)
    assert row.distance > 0
    assert row.return_0 != row.return_1
    gaits = np.array([row.gait_0.split(), row.gait_1.split()], dtype=float)
    assert gaits.shape == (2, 3)
    assert ((gaits[:, 1:] >= 0) & (gaits[:, 1:] <= 1)).all()
    assert (gaits[:, 1:] > 0).any()
    strip = gait_study.film_strip(tmp_path / "gaits" / "repelled-3", after=0)
    height, width, _ = strip.shape
    assert width % gait_study.N_FRAMES == height % 2 == 0
    assert (strip[: height // 2] != strip[height // 2 :]).any()


def test_copies_go_on_from_one_trained_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(gait_study, "N_STEPS", 2048)
    gait_study.train_single(3, tmp_path)
    single = gait_study.single_path(tmp_path, 3)
    written = single.with_suffix(".zip").stat().st_mtime_ns
    gait_study.train_single(3, tmp_path)  # is there
    assert single.with_suffix(".zip").stat().st_mtime_ns == written
    trained = WNPG.load(single)
    model = gait_study.make_model("repelled copies", 3, single)
    observations = np.random.default_rng(0).normal(size=(5, 26)).astype(np.float32)
    expected = trained.predict(observations, deterministic=True)[0]
    for particle in range(2):
        np.testing.assert_allclose(model.predict(observations, deterministic=True, particle=particle)[0], expected, atol=1e-5)
    seen = model.get_vec_normalize_env().obs_rms
    assert seen.count > 2048  # the statistics go on, too
    model.learn(2 * 1024)
    actions = [model.predict(observations, deterministic=True, particle=particle)[0] for particle in range(2)]
    assert (actions[0] != actions[1]).all()


def test_settings_are_wnpgs(tmp_path):
    model = gait_study.make_model("independent", 0, tmp_path)
    assert (model.n_envs, model.n_steps) == (4, 512)
    learner = model.particles[0].learner
    assert (learner.target_kl, learner.target_distance, learner.n_critic_updates) == (0.06, 0.02, 20)
    assert model.wasserstein_coef == 0
    repulsion = gait_study.make_model("repelled", 0, tmp_path).wasserstein_coef
    assert all(repulsion(remaining) == 0 for remaining in (1.0, 0.9, 0.3, 0.0))
    assert all(repulsion(remaining) < 0 for remaining in (0.7, 0.5))


def test_pairs_are_judged_by_the_single_policies():
    rows = pd.DataFrame(
        {
            "algorithm": ["independent"] * 2 + ["repelled"] * 2 + ["copies"] * 2 + ["repelled copies"] * 2,
            "seed": [0, 1] * 4,
            "return_0": [1000, 1200, 1000, 880, 2000, 500, 1790, 455],
            "return_1": [800, 1000, 900, 2000, 2000, 500, 1850, 480],
            "distance": [1.0, 2.0, 8.0, 4.0, 0.5, 0.5, 5.0, 2.0],
            "cpu_seconds": 1.0,
        }
    )
    # a single policy gets 1000; after the common past, 2000 with one seed and 500 with the other
    for random, n_kept in ((0.0, [1, 1, 2, 1]), (-500.0, [1, 2, 2, 2])):
        table = gaits_table(rows, random)
        assert table["both reach 90 % of a single policy's score"].tolist() == [f"{n} of 2 pairs" for n in n_kept]
        assert table.loc["repelled", "distance, median"] == "6.0"
    table = gaits_table(rows.drop(5), 0.0)  # one copy is not there yet
    assert table.loc["repelled copies", "both reach 90 % of a single policy's score"] == "0 of 1 pairs"
