"""The study's settings can be built, its runs are recorded once, and its report reads what they wrote."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import pandas as pd
import torch
from matplotlib.figure import Figure

from sb3_wng import SVPG
from sb3_wng.benchmarks import pool, svpg_report, svpg_speed, svpg_study
from sb3_wng.benchmarks.checkpoints import only_one
from sb3_wng.benchmarks.cross_entropy import CrossEntropy, refit
from sb3_wng.benchmarks.records import append_records
from sb3_wng.envs import make_batched
from sb3_wng.population import AnnealedTemperature

SETTINGS = {(name, label): s for name, table in svpg_study.experiments().items() for label, s in table.items()}


@pytest.mark.parametrize("key", SETTINGS, ids=", ".join)
def test_every_setting_builds_a_population(key):
    setting = SETTINGS[key]
    small = replace(setting, arguments={**setting.arguments, "n_particles": 4}, n_columns=8)
    model = svpg_study.make_model(small, next(iter(setting.environments)), 0)
    assert model.n_steps == 500
    assert svpg_study.ITERATIONS.keys() >= setting.environments.keys()
    assert setting.n_columns % setting.arguments.get("n_particles", 16) == 0


def test_the_published_table_is_complete_and_populations_are_compared_at_equal_steps():
    assert len(svpg_study.PUBLISHED) == 6
    assert svpg_study.experiments()["table"].keys() - svpg_study.PUBLISHED.keys() == {"A2C radial"}
    assert all(set(values) == set(svpg_study.ITERATIONS) for values in svpg_study.PUBLISHED.values())
    assert {setting.n_columns for setting in svpg_study.experiments()["population_size"].values()} == {320}


@pytest.fixture
def tiny(monkeypatch):
    """Runs of two rollouts of a few steps."""
    monkeypatch.setattr(svpg_study, "N_STEPS", 20)
    monkeypatch.setitem(svpg_study.ITERATIONS, svpg_study.SWING_UP, 4)
    table = {
        name: replace(SETTINGS["table", name], n_columns=8, arguments={**SETTINGS["table", name].arguments, "n_particles": 4})
        for name in ("REINFORCE svpg", "REINFORCE joint")
    }
    task = {"max_episode_steps": 10}
    monkeypatch.setattr(svpg_study, "experiments", lambda: {"table": {k: replace(s, task=task) for k, s in table.items()}})


def test_runs_are_recorded_once_and_reported(tiny, tmp_path):
    path = tmp_path / "svpg_table.csv"
    for name in ("REINFORCE svpg", "REINFORCE joint"):
        for seed in (0, 1):
            append_records(path, svpg_study.run("table", name, svpg_study.SWING_UP, seed, 0.5, tmp_path, tmp_path))
    assert svpg_study.run("table", "REINFORCE svpg", svpg_study.SWING_UP, 0, 0.5, None, tmp_path, deadline=0.0) == []
    assert ("REINFORCE svpg", svpg_study.SWING_UP, 1, 0.5) in svpg_study.finished_runs(path)
    rows = pd.read_csv(path)
    assert len(rows) == 2 * 2 * 2
    last = rows[(rows.algorithm == "REINFORCE svpg") & (rows.iteration == 2)].iloc[0]
    returns = [float(value) for value in last.particle_returns.split()]
    assert len(returns) == 4
    assert last.return_best == pytest.approx(max(returns), abs=0.1)
    assert last.return_mean == pytest.approx(np.mean(returns), abs=0.1)
    assert last.timesteps == 2 * 20 * 8
    text = svpg_report.section(tmp_path)
    runs = svpg_report.summary(rows)
    assert f"{runs[runs.algorithm == 'REINFORCE joint'].best.mean():.1f}"[:4] in text
    assert "(427)" in text
    assert "(233)" in text
    svpg_report.draw(tmp_path)
    assert (tmp_path / "svpg_table.png").stat().st_size > 0


@pytest.mark.parametrize("change", [{}, {"algorithm": "a2c", "temperature": AnnealedTemperature(100.0, 1.0)}], ids=str)
def test_an_interrupted_run_ends_as_an_undisturbed_one(change, tiny, tmp_path, monkeypatch):
    setting = SETTINGS["table", "REINFORCE svpg"]
    arguments = {**setting.arguments, "n_particles": 4, "policy_kwargs": {"net_arch": [8]}, **change}
    setting = replace(setting, n_columns=8, arguments=arguments, task={"max_episode_steps": 13})  # not as long as a rollout
    monkeypatch.setattr(svpg_study, "experiments", lambda: {"table": {"svpg": setting}})
    key = "table", "svpg", svpg_study.SWING_UP, 0, 1.0
    undisturbed = svpg_study.run(*key, None, tmp_path / "undisturbed")
    monkeypatch.setattr(svpg_study, "ITERATIONS_PER_CHECKPOINT", 2)
    record = svpg_study.Curve.record

    def record_and_die(curve, *args):
        record(curve, *args)
        if curve.n_rollouts == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(svpg_study.Curve, "record", record_and_die)
    with pytest.raises(KeyboardInterrupt):
        svpg_study.run(*key, None, tmp_path)
    monkeypatch.setattr(svpg_study.Curve, "record", record)
    assert svpg_study.checkpoint_path(tmp_path, *key).exists()
    monkeypatch.setattr(svpg_study, "make_model", None)  # not started again
    changed = replace(setting, arguments={**arguments, "learning_rate": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(svpg_study, "experiments", lambda: {"table": {"svpg": changed}})
        with pytest.raises(ValueError, match=r"was made by .*, and not by .*'learning_rate': 0.5.*: delete it to begin anew"):
            svpg_study.run(*key, None, tmp_path)
    resumed = svpg_study.run(*key, None, tmp_path)
    assert len(resumed) == 4
    for one, other in zip(undisturbed, resumed, strict=True):
        assert one["cpu_seconds"]
        assert {k: v for k, v in one.items() if "seconds" not in k} == {k: v for k, v in other.items() if "seconds" not in k}


def test_tasks_have_their_own_share_and_their_own_panels(tiny, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: saved.append(figure))
    path = tmp_path / "svpg_table.csv"
    for task, share in ((svpg_study.SWING_UP, 0.5), (svpg_study.CART_POLE, 0.02)):
        append_records(path, svpg_study.run("table", "REINFORCE svpg", task, 0, share, None, tmp_path))
    assert "iterations, here: CartPoleSwingUp 0.5; CartPole 0.02." in svpg_report.section(tmp_path)
    svpg_report.draw(tmp_path)
    assert [axes.get_title() for axes in saved[0].axes[::2]] == ["CartPoleSwingUp", "CartPole"]
    assert all(axes.lines for axes in saved[0].axes)


def test_runs_of_different_lengths_are_not_averaged(tmp_path):
    run = {"algorithm": "svpg", "environment": svpg_study.SWING_UP, "iteration": 1, "return_best": 1.0}
    of_another_task = {**run, "environment": svpg_study.CART_POLE, "share": 0.1}
    runs = [{**run, "seed": seed, "share": 0.3} for seed in (0, 1)]
    pd.DataFrame([of_another_task, *runs, {**run, "seed": 0, "share": 1.0}]).to_csv(tmp_path / "runs.csv")
    assert svpg_report.read_runs(tmp_path / "runs.csv").share.tolist() == [0.3, 0.3, 0.1]  # in the order of the paper's tasks
    pd.DataFrame([runs[0], {**run, "seed": 0, "share": 1.0}]).to_csv(tmp_path / "runs.csv")
    assert svpg_report.read_runs(tmp_path / "runs.csv").share.tolist() == [1.0]


def test_kinds_of_particles_have_their_own_share_on_a_task(tmp_path):
    runs = [
        {"algorithm": f"{kind} {mode}", "environment": task, "seed": seed, "share": share, "iteration": 1, "return_best": 1.0}
        for kind, task, shares in (
            ("A2C", svpg_study.SWING_UP, [0.3, 0.3]),
            ("REINFORCE", svpg_study.SWING_UP, [0.3, 1.0, 1.0]),
            ("A2C", svpg_study.CART_POLE, [1.0]),
        )
        for mode in ("svpg", "joint")
        for seed, share in enumerate(shares)
    ]
    pd.DataFrame(runs).to_csv(tmp_path / "runs.csv")
    rows = svpg_report.read_runs(tmp_path / "runs.csv")
    assert rows.algorithm.value_counts().to_dict() == {f"A2C {m}": 3 for m in ("svpg", "joint")} | {
        f"REINFORCE {m}": 2 for m in ("svpg", "joint")
    }
    assert svpg_report.by_task(rows, "share") == "CartPoleSwingUp A2C 0.3, REINFORCE 1; CartPole 1"
    assert svpg_report.by_task(rows[rows.environment == svpg_study.CART_POLE], "seed") == "0"


def test_ablations_are_shown_best_first(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(svpg_report, "save", lambda figure, *_: saved.append(figure))
    returns = {"independent": 100, "svpg": 300, "joint": 250, "radial, no interaction": 310, "selection": 150}
    common = {"environment": svpg_study.SWING_UP, "share": 0.3, "published": "", "repulsion_ratio": 0, "parameter_norm": 1}
    append_records(
        tmp_path / "svpg_ablations.csv",
        [
            {
                "algorithm": name,
                "seed": seed,
                "iteration": iteration,
                "timesteps": iteration,
                "return_best": value * iteration,
                "return_mean": value - 10,
                "particle_returns": f"{value} {value - 20}",
                **common,
            }
            for name, value in returns.items()
            for seed in (0, 1)
            for iteration in (1, 2)
        ],
    )
    svpg_report.draw(tmp_path)
    settings, curves, particles = saved[0].axes
    names = sorted(returns, key=returns.get)
    assert [label.get_text() for label in settings.get_yticklabels()] == names
    assert all(len(axes.lines) == len(svpg_report.MODES) for axes in (curves, particles))
    rows = [line.split("|")[1].strip() for line in svpg_report.section(tmp_path).splitlines() if line.startswith("| ")]
    assert rows[2:] == names[::-1]


def runs_of(returns, seeds):
    """Runs of two settings as the summary has them; ``returns`` by setting is a function of the seed."""
    rows = [
        {"algorithm": name, "seed": seed, "share": 0.3, "best at the end": value(seed), "mean at the end": 2 * value(seed)}
        for name, value in returns.items()
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_settings_are_compared_with_the_control_by_seed_and_not_on_seeds_of_trials():
    control = svpg_report.CONTROL
    returns = {control: lambda seed: 10 * seed, "near": lambda seed: 10 * seed + (1000 if seed < 3 else 7)}
    text = svpg_report.differences(runs_of(returns, range(13)))
    assert "- near: best at the end +7 [+7, +7], mean at the end +14 [+14, +14] (10 seeds)" in text
    assert text.count("- ") == 1  # the control is not compared with itself
    assert svpg_report.differences(runs_of(returns, range(12))) == ""
    assert svpg_report.differences(runs_of({"near": returns["near"]}, range(13))) == ""


def test_best_returns_and_the_iterations_to_come_close_are_read_off_the_curve():
    curve = pd.DataFrame({"return_best": [0, 96, 100, 90], "iteration": [1, 2, 3, 4], "return_mean": 1.0})
    constant = {"algorithm": "a", "environment": "e", "seed": 0, "share": 1.0, "repulsion_ratio": 0.5, "parameter_norm": 2.0}
    run = svpg_report.summary(curve.assign(**constant, published=10.0)).iloc[0]
    assert (run.best, run.iterations, run["best at the end"]) == (100, 2, 90)


def test_candidates_that_do_best_make_the_next_gaussian():
    candidates = torch.arange(16.0).reshape(2, 8, 1).expand(2, 8, 3)
    returns = torch.stack([torch.arange(8.0), -torch.arange(8.0)])
    means, stds = refit(candidates, returns)
    torch.testing.assert_close(means, torch.tensor([[6.5] * 3, [8.5] * 3]))  # the best two of eight
    torch.testing.assert_close(stds, torch.full((2, 3), 0.5**0.5))


def test_cross_entropy_methods_learn_apart_from_each_other(tiny):
    setting = svpg_study.Setting({"algorithm": "pg", "policy_kwargs": {"net_arch": [4]}}, n_columns=48)
    candidates = replace(setting, arguments={**setting.arguments, "n_particles": 48})
    model = svpg_study.make_model(candidates, svpg_study.MOUNTAIN_CAR, 0)
    evolution = CrossEntropy(model, 2)
    theta = evolution.means.clone()
    # The return is minus the first parameter: an environment that asks for nothing but a step each
    evolution._episodes = lambda: -model.policy.theta[:, 0].numpy() * np.repeat([1, -1], 24)
    for _ in range(10):
        evolution.iterate()
    assert evolution.means[0, 0] < theta[0, 0] - 0.3
    assert evolution.means[1, 0] > theta[1, 0] + 0.3
    assert (evolution.stds > 0).all()
    with pytest.raises(ValueError, match="cannot be dealt to 5"):
        CrossEntropy(model, 5)


def test_an_episode_counts_until_its_end(tiny):
    """Columns start anew by themselves; what they earn after that is not the candidate's."""
    setting = svpg_study.Setting({"algorithm": "pg", "n_particles": 8}, n_columns=8, task={"max_episode_steps": 10})
    evolution = CrossEntropy(svpg_study.make_model(setting, svpg_study.MOUNTAIN_CAR, 0), 2)
    returns = evolution.iterate()
    assert (returns.min() >= -10) & (returns.max() < -9)  # about -1 per step, in rollouts of 20


def test_cross_entropy_runs_are_recorded_as_others(tiny, tmp_path, monkeypatch):
    setting = svpg_study.Setting({"algorithm": "pg", "n_particles": 4}, n_columns=8, is_cross_entropy=True)
    monkeypatch.setattr(svpg_study, "experiments", lambda: {"ablations": {"CEM": setting}})
    records = svpg_study.run("ablations", "CEM", svpg_study.SWING_UP, 0, 0.5, None, tmp_path)
    assert [record["iteration"] for record in records] == [1, 2]
    assert records[-1]["timesteps"] == 2 * 20 * 8
    assert len(str(records[-1]["particle_returns"]).split()) == 4


def test_visits_of_nobody_leave_the_file_alone(tmp_path):
    path = tmp_path / "svpg_visitation.csv"
    path.write_text("share\n1\n")
    with pytest.raises(FileNotFoundError, match="has no populations"):
        svpg_study.write_visitation(tmp_path, path)
    assert path.read_text() == "share\n1\n"


def test_visits_are_shares_of_the_time(tmp_path):
    model = svpg_study.make_model(
        svpg_study.Setting({"n_particles": 4, "algorithm": "pg"}, n_columns=4), svpg_study.SWING_UP, 0
    )
    model.save(tmp_path / f"table-REINFORCE_svpg-{svpg_study.SWING_UP}-0-1")
    (tmp_path / f"table-REINFORCE_svpg-{svpg_study.SWING_UP}-0-0.1.zip").touch()  # of a shorter study
    svpg_study.write_visitation(tmp_path, tmp_path / "svpg_visitation.csv")
    rows = pd.read_csv(tmp_path / "svpg_visitation.csv")
    assert rows.share.sum() == pytest.approx(1, abs=0.02)
    assert set(rows.algorithm) == {"REINFORCE svpg"}
    hanging = rows[(rows.angle < 5) | (rows.angle > 24)]
    assert hanging.share.sum() > 0.5  # an untrained pole hangs
    text = svpg_report.section(tmp_path)
    visits = next(line for line in text.splitlines() if line.startswith("| REINFORCE svpg | "))
    upright, cells, seeds = (part.strip() for part in visits.split("|")[2:5])
    assert upright == f"{rows.share[rows.angle.between(13, 16)].sum() / rows.share.sum():.0%}"
    assert 20 < float(cells) <= len(rows)
    assert seeds == "1"
    svpg_report.draw(tmp_path)
    assert "](svpg_visitation.png)" in text
    assert (tmp_path / "svpg_visitation.png").exists()
    assert isinstance(SVPG.load(next(tmp_path.glob("*-1.zip")), device="cpu"), SVPG)


def test_visits_are_of_the_best_four(monkeypatch):
    model = svpg_study.make_model(
        svpg_study.Setting({"n_particles": 8, "algorithm": "pg"}, n_columns=8), svpg_study.SWING_UP, 0
    )
    for returns, value in zip(model.particle_returns, (5, 1, 7, 2, 8, 3, 6, 4), strict=True):
        returns.append(value)
    acted, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *given, particle: (acted.append(particle), predict(*given))[1])
    monkeypatch.setattr(svpg_study, "N_STEPS", 1)
    svpg_study.visitation(model, 0)
    assert sorted(acted) == [0, 2, 4, 6]


def test_visits_of_few_cells_are_called_so():
    rows = pd.DataFrame({"algorithm": ["a", "b", "b"], "seeds": 2, "position": 3, "angle": [0, 14, 0], "share": [1, 0.5, 0.5]})
    table = svpg_report.table_of_visits(rows)
    assert table.to_numpy().tolist() == [["0%", "1", "2"], ["50%", "2", "2"]]


def fail_in_one(experiment, name, environment, seed, share, models, work, deadline):
    if seed == 0:
        raise OSError("no memory")
    return [{"algorithm": name, "environment": environment, "seed": seed, "share": share, "return_best": "1.0"}]


def study(*arguments, monkeypatch):
    monkeypatch.setattr(pool, "ProcessPool", ThreadPoolExecutor)
    monkeypatch.setattr(svpg_study, "run", fail_in_one)
    monkeypatch.setattr("sys.argv", ["svpg_study", "weights", "--share", "0.3333333", *arguments])
    return svpg_study.main()


def test_a_run_that_fails_does_not_cost_the_others(tmp_path, monkeypatch, capsys):
    common = "--algorithms", "svpg", "independent", "--output", str(tmp_path / "weights.csv"), "--work", str(tmp_path)
    assert study(*common, "--seeds", "0", "1", "2", monkeypatch=monkeypatch) == 1
    rows = pd.read_csv(tmp_path / "weights.csv")
    assert sorted(zip(rows.algorithm, rows.seed, strict=True)) == [(n, s) for n in ("independent", "svpg") for s in (1, 2)]
    assert "failed: svpg RllabCartPole-v0 0 OSError('no memory')" in capsys.readouterr().out
    assert study(*common, "--seeds", "1", "2", monkeypatch=monkeypatch) == 0
    assert len(pd.read_csv(tmp_path / "weights.csv")) == 4  # the share is found again as it was written


def test_two_studies_do_not_write_one_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.csv"
    with only_one(path), pytest.raises(RuntimeError, match=r"another process is writing .*weights\.csv"):
        study("--output", str(path), "--seeds", "1", monkeypatch=monkeypatch)
    study("--output", str(path), "--seeds", "1", "--work", str(tmp_path), monkeypatch=monkeypatch)
    assert len(pd.read_csv(path)) == 4


def test_unknown_settings_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        study("--algorithms", "svgp", monkeypatch=monkeypatch)
    assert "weights has no ['svgp']; it has ['svpg'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        study("--environments", "RllabCartPole", monkeypatch=monkeypatch)
    assert "weights has no ['RllabCartPole']; it has ['RllabCartPole-v0'" in capsys.readouterr().err


def test_speeds_are_measured_and_written(monkeypatch, tmp_path):
    monkeypatch.setattr(svpg_speed, "N_STEPS", 5)
    monkeypatch.setattr(svpg_speed, "N_OFF_POLICY", 700)
    monkeypatch.setattr(svpg_speed, "make_model", lambda setting, *rest: small_model(setting))
    monkeypatch.setattr(svpg_speed, "stein_seconds", lambda n, p: n * p * 1e-9)
    monkeypatch.setattr("sys.argv", ["svpg_speed", "--output", str(tmp_path / "speed.csv")])
    svpg_speed.main()
    rows = pd.read_csv(tmp_path / "speed.csv").set_index("quantity")
    assert (rows.value[rows.unit == "steps/s"] > 0).all()
    assert len(rows) == 13


def small_model(setting):
    arguments = {**setting.arguments, "n_particles": 2, "policy_kwargs": {"net_arch": [4]}}
    env = make_batched(svpg_study.SWING_UP, 4, seed=0)
    return SVPG("MlpPolicy", env, n_steps=10, seed=0, device="cpu", **arguments)


def test_stein_directions_take_time():
    assert 0 < svpg_speed.stein_seconds(4, 100) < svpg_speed.stein_seconds(64, 100_000)
