"""The study's settings can be built, its runs are recorded once, and its report reads what they wrote."""

import numpy as np
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import pandas as pd

from sb3_wng.benchmarks import hill_grid, multipolicy_report, multipolicy_study
from sb3_wng.benchmarks.checkpoints import only_one
from sb3_wng.benchmarks.records import append_records
from sb3_wng.envs.grid import GOAL, HillGrid

SETTINGS = multipolicy_study.settings()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_builds_as_many_policies_as_goals(name, monkeypatch):
    monkeypatch.setattr(multipolicy_study, "N_EPISODES", 2)
    model = multipolicy_study.make_model(SETTINGS[name], 0)
    assert len(model.policy) == SETTINGS[name].n_goals == len(model.get_env().get_attr("goals")[0])


def test_goals_are_counted_once_each():
    goals = np.array([[-2.0, 1.5], [2.0, 1.5]])
    assert multipolicy_study.n_found(np.array([[-2.0, 1.2], [2.3, 1.5]]), goals) == 2
    assert multipolicy_study.n_found(np.array([[-2.0, 1.2], [-2.1, 1.5]]), goals) == 1
    assert multipolicy_study.n_found(np.array([[-2.0, 0.9], [3.0, 1.5]]), goals) == 0


def test_runs_are_recorded_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(multipolicy_study, "N_EPISODES", 20)
    monkeypatch.setattr(multipolicy_study, "N_ITERATIONS", 2)
    monkeypatch.setattr(multipolicy_study, "PICTURES", (0, 1))
    folder = tmp_path / "benchmarks"
    record = multipolicy_study.run("repelled", 0)
    assert record["timesteps"] == 2 * 20 * 2 * 20
    append_records(folder / "multipolicy_goals.csv", [record])
    multipolicy_study.take_pictures(folder, 0)
    paths, maps = (pd.read_csv(folder / f"multipolicy_{name}.csv") for name in ("paths", "maps"))
    assert (paths[paths.step == 0][["x", "y"]] == 0).all(axis=None)
    assert set(maps.iteration) == {0, 1}
    for _, shown in maps.groupby(["iteration", "policy"]):
        assert shown.potential.mean() == pytest.approx(0, abs=1e-2)
    monkeypatch.setattr(hill_grid, "N_EPISODES", 200)
    monkeypatch.setattr(hill_grid, "TIMEOUTS", (30,))
    monkeypatch.setattr(multipolicy_report, "N_EPISODES", 200)
    hill_grid.study(folder / "multipolicy_grid.csv", [0, 1])
    n_rows = len(pd.read_csv(folder / "multipolicy_grid.csv"))
    hill_grid.study(folder / "multipolicy_grid.csv", [0, 1])
    assert len(pd.read_csv(folder / "multipolicy_grid.csv")) == n_rows == 2 * (3 * 20 + 2)
    hill_grid.study(tmp_path / "more.csv", [0])
    hill_grid.study(tmp_path / "more.csv", [0, 1])  # only what is missing
    assert len(pd.read_csv(tmp_path / "more.csv")) == n_rows
    text = multipolicy_report.section(folder)
    assert f"{record['found'] // 2} of 1 runs" in text
    assert "| cloning of one route | 2 of 2" in text
    multipolicy_report.draw(folder)
    assert (folder / "multipolicy_grid.png").stat().st_size > 0
    assert (folder / "two_goals.png").stat().st_size > 0


def test_episodes_add_up_and_gradients_are_those_of_the_log_probability():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(2, hill_grid.BASIS.shape[1], 4))
    probabilities = hill_grid.action_probabilities(theta)
    task = HillGrid(timeout=20)
    episodes = hill_grid.act(probabilities, task, [np.random.default_rng(i) for i in (0, 1)], 5)
    lengths = episodes.counts.sum(axis=(2, 3))
    assert ((lengths == 20) | episodes.arrived).all()
    np.testing.assert_allclose(episodes.visits.sum(axis=2), 1)
    assert ((episodes.visits[..., GOAL] > 0) == episodes.arrived).all()
    weights = rng.normal(size=(2, 5))
    leaf = torch.tensor(theta, requires_grad=True)
    log_prob = torch.log_softmax(torch.as_tensor(hill_grid.BASIS) @ leaf, dim=-1)
    (torch.as_tensor(episodes.counts * weights[..., None, None]).mean(dim=1) * log_prob).sum().backward()
    np.testing.assert_allclose(hill_grid.score_gradient(episodes.counts, probabilities, weights), leaf.grad, atol=1e-10)


def test_a_run_does_not_depend_on_which_others_are_batched_with_it(monkeypatch):
    monkeypatch.setattr(hill_grid, "N_EPISODES", 200)
    strip = [{k: v for k, v in r.items() if "seconds" not in k} for r in hill_grid.train(30, 2, [0, 1])]
    alone = [{k: v for k, v in r.items() if "seconds" not in k} for r in hill_grid.train(30, 2, [1])]
    assert [record for record in strip if record["seed"] == 1] == alone


def test_two_routes_share_the_pull_between_them():
    first, second = (hill_grid.frequencies(route) for route in hill_grid.routes(2))
    rng = np.random.default_rng(0)
    visits = np.stack([first] * 9 + [second]) + 0.001 * rng.normal(size=(10, 70))
    attraction = hill_grid.Attraction(np.stack([first, second]))
    for _ in range(300):
        signal = attraction(visits)
    assert signal[9] < signal[:9].min()  # there is too little of the second route
    assert hill_grid.Attraction(first[None])(visits)[9] > 0  # which a target of one route wants less of


@pytest.mark.slow
def test_policies_that_repel_find_one_goal_each():
    """What two agents that know nothing of each other find on this seed is one goal, twice."""
    together, alone = (multipolicy_study.run(name, 105) for name in ("repelled", "independent"))
    assert (together["found"], alone["found"]) == (2, 1)
    assert float(together["return_worst"]) > -16


@pytest.mark.parametrize("experiment", ["goals", "grid"])
def test_unknown_names_are_refused_before_anything_runs(experiment, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["multipolicy_study", experiment, "--algorithms", "nonsense"])
    with pytest.raises(SystemExit):
        multipolicy_study.main()
    assert "has no ['nonsense']" in capsys.readouterr().err


def test_goals_are_trained_once_and_by_one_process(tmp_path, monkeypatch):
    path, trained = tmp_path / "multipolicy_goals.csv", []

    def run(name, seed):
        with pytest.raises(RuntimeError, match="another process is writing"), only_one(path):
            pass
        trained.append((name, seed))
        return {"algorithm": name, "seed": seed, "found": 2, "ends": ""}

    monkeypatch.setattr(multipolicy_study, "run", run)
    for seeds in ("01", "12"):
        arguments = ["goals", "--folder", str(tmp_path), "--algorithms", "repelled", "--seeds", *seeds]
        monkeypatch.setattr("sys.argv", ["multipolicy_study", *arguments])
        multipolicy_study.main()
    assert trained == [("repelled", 0), ("repelled", 1), ("repelled", 2)]


def test_the_grids_seeds_are_those_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(hill_grid, "study", lambda path, seeds: asked.append(seeds))
    for arguments in ([], ["--seeds", *map(str, range(7))]):
        monkeypatch.setattr("sys.argv", ["multipolicy_study", "grid", *arguments])
        multipolicy_study.main()
    assert asked == [[0, 1, 2, 3, 4], list(range(7))]
