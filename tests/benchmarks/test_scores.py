from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pd = pytest.importorskip("pandas")
pytest.importorskip("pybullet_envs_gymnasium")

from sb3_wng.benchmarks import scores, training_cost  # noqa: E402
from sb3_wng.benchmarks.experiments import EXPERIMENTS, REGULATOR  # noqa: E402
from sb3_wng.benchmarks.models import Experiment, Method  # noqa: E402
from sb3_wng.benchmarks.records import read_records, write_records  # noqa: E402

RANDOM = np.random.default_rng(3)
FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def make_experiment(**changes) -> Experiment:
    methods = {"A": Method("NPG"), "B": Method("PG")}
    return Experiment("two", "", methods, {"x": 100, "y": 200}, (0, 1, 2), n_bins=20, **changes)


def make_rows(experiment: Experiment, value=lambda name, env, seed, share: share) -> list[dict[str, object]]:
    return [
        {
            "experiment": "two",
            "algorithm": name,
            "environment": env,
            "seed": seed,
            "timesteps": end * index // 20,
            "return": value(name, env, seed, index / 20),
            "wall_seconds": index,
        }
        for name in experiment.methods
        for env, end in experiment.environments.items()
        for seed in experiment.seeds
        for index in range(1, 21)
    ]


def test_the_interquartile_mean_drops_a_quarter_at_each_end_of_all_runs():
    estimate = scores.interquartile_mean([np.array([0.0, 1.0, 2.0, 1000.0]), np.array([-1000.0, 1.0, 2.0, 3.0])])
    assert estimate.value == pytest.approx((1 + 1 + 2 + 2) / 4)


@pytest.mark.parametrize("statistic", [scores.mean, scores.interquartile_mean])
def test_intervals_are_stratified_by_task(statistic):
    # no spread within a task, however far the tasks are apart
    estimate = statistic([np.zeros(10), np.full(10, 5.0)])
    assert (estimate.value, estimate.low, estimate.high) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("spreads", [(1.0,), (1.0, 1.0), (0.1, 1.0, 3.0)])
def test_intervals_of_ten_seeds_cover_the_truth_as_often_as_they_say(spreads):
    covered = []
    for _ in range(4000):
        estimate = scores.mean([RANDOM.normal(task, spread, 10) for task, spread in enumerate(spreads)])
        covered.append(estimate.low <= (len(spreads) - 1) / 2 <= estimate.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_intervals_of_a_task_and_of_two_are_students_and_welchs():
    first, second = RANDOM.normal(0, 1, 10), RANDOM.normal(1, 3, 12)
    known = stats.ttest_1samp(first, 0).confidence_interval()
    assert scores.mean([first])[1:3] == pytest.approx((known.low, known.high))
    # the mean over all values is a sum of two groups' shares, as Welch's difference of two means is
    n = 22
    known = stats.ttest_ind(first * 10 / n, -second * 12 / n, equal_var=False).confidence_interval()
    assert scores.mean([first, second])[1:3] == pytest.approx((known.low, known.high))


def test_estimates_are_the_same_when_computed_again():
    samples = [RANDOM.normal(size=10)]
    assert scores.interquartile_mean(samples) == scores.interquartile_mean(samples)


@pytest.mark.parametrize(
    ("values", "clear"),
    [(np.linspace(0.1, 1, 10), True), (np.linspace(0.1, 1, 9), False), (np.linspace(-1, 1, 10), False)],
)
def test_a_claim_needs_ten_seeds_and_an_interval_without_zero(values, clear):
    assert scores.mean([values]).is_clear == clear
    assert scores.mean([-values]).is_clear == clear


def test_pairing_removes_what_a_seed_does_to_both():
    luck, gain = RANDOM.normal(0, 10, 10), RANDOM.normal(0.5, 0.1, 10)
    paired = scores.mean(scores.paired_differences([luck + gain], [luck]))
    assert paired.is_clear
    assert paired.value == pytest.approx(gain.mean())


def test_profiles_are_shares_of_runs_above_a_threshold():
    profile = scores.performance_profile(np.array([0.0, 0.5, 1.0, 1.0]), np.array([-1.0, 0.0, 0.75, 1.0]))
    np.testing.assert_array_equal(profile, [1.0, 0.75, 0.5, 0.0])


def test_a_cell_counts_only_when_all_its_seeds_are_there(tmp_path):
    experiment = make_experiment()
    rows = [r for r in make_rows(experiment) if (r["algorithm"], r["environment"], r["seed"]) != ("A", "x", 1)]
    write_records(tmp_path / "two.csv", rows)
    runs = scores.read_runs(tmp_path, experiment)
    assert set(zip(runs.algorithm, runs.environment, strict=True)) == {("A", "y"), ("B", "x"), ("B", "y")}


def test_an_experiment_without_runs_is_empty(tmp_path):
    assert scores.read_runs(tmp_path, make_experiment()).empty


def test_seconds_are_the_processors_where_they_were_recorded(tmp_path):
    experiment = make_experiment()
    rows = [row | ({"cpu_seconds": 0.5} if row["seed"] == 0 else {"wall_seconds": 7.0}) for row in make_rows(experiment)]
    write_records(tmp_path / "two.csv", rows)
    runs = scores.read_runs(tmp_path, experiment)
    assert set(runs[runs.seed == 0].seconds) == {0.5}
    assert set(runs[runs.seed != 0].seconds) == {7.0}


def test_final_returns_are_of_the_last_tenth_and_areas_of_everything(tmp_path):
    experiment = make_experiment()
    write_records(tmp_path / "two.csv", make_rows(experiment))
    runs = scores.read_runs(tmp_path, experiment)
    assert scores.final_returns(runs, experiment)["A", "x", 0] == pytest.approx((0.95 + 1) / 2)
    area = np.mean(np.arange(1, 21) / 20)
    assert scores.mean_returns(runs, experiment)["A", "y", 2] == pytest.approx(area)
    gaps = runs[runs.timesteps % 20 == 0]  # every other bin of x is missing
    assert scores.mean_returns(gaps, experiment)["A", "x", 0] == pytest.approx(area, abs=0.02)


def test_scores_are_zero_for_random_and_one_for_the_reference_actions(tmp_path):
    experiment = make_experiment(saturating=("y",))
    write_records(tmp_path / "two.csv", make_rows(experiment, lambda name, *_: -5.0 if name == "A" else 10.0))
    constants = pd.DataFrame({"random": {"x": -5.0, "y": -20.0}, "reference": {"x": 10.0, "y": 40.0}})
    table = scores.scores(scores.read_runs(tmp_path, experiment), experiment, constants)
    np.testing.assert_allclose(table["A", "x"], 0)
    np.testing.assert_allclose(table["B", "x"], 1)
    np.testing.assert_allclose(table["B", "y"], 0.5)
    assert [len(values) for values in scores.samples(table, "A", experiment.environments)["A"]] == [3, 3]
    unfinished = table.drop(columns=[("A", "x")])
    assert list(scores.samples(unfinished, ["A", "B"], experiment.environments)) == ["B"]
    assert scores.aggregated_tasks(table, experiment) == ["x", "y"]
    assert scores.aggregated_tasks(unfinished, experiment) == []
    assert scores.aggregated_tasks(table.drop(columns=[("B", "x")]), experiment) == ["x", "y"]  # A is the subject


def test_minutes_count_until_the_averaged_return_reaches_the_score(tmp_path):
    experiment = make_experiment()

    def value(name, env, seed, share):
        if name == "B":
            return 90.0 if share == 0.5 else 0.0  # one lucky bin of twenty
        return 100.0 * share if seed else -100.0

    rows = make_rows(experiment, value)
    for row in rows:
        row["wall_seconds"] = "" if row["seed"] == 2 else row["wall_seconds"]
    write_records(tmp_path / "two.csv", rows)
    constants = pd.DataFrame({"random": {"x": 0.0, "y": 20.0}, "reference": {"x": 100.0, "y": 100.0}})
    minutes = scores.minutes_to(0.5, scores.read_runs(tmp_path, experiment), experiment, constants)
    assert minutes["A", "x", 1] == pytest.approx(11 / 60)  # the mean of bins 10 and 11 is above 50
    assert minutes["A", "y", 1] == pytest.approx(13 / 60)  # of bins 12 and 13 above 60
    assert np.isinf(minutes["A", "x", 0])
    assert np.isinf(minutes["B", "x", 0])
    assert ("A", "x", 2) not in minutes.index
    assert scores.minutes_to(0.5, scores.read_runs(tmp_path, experiment)[:0], experiment, constants).empty


def test_every_task_of_an_experiment_has_constants():
    constants = scores.read_constants(FOLDER)
    for experiment in EXPERIMENTS.values():
        chosen = constants.loc[list(experiment.environments)]
        assert (chosen.random < chosen.reference).all()
        assert (chosen.random_episodes >= 20).all()
        assert chosen.source.notna().all()


def test_measured_constants_are_never_changed(tmp_path):
    path = tmp_path / "constants.csv"
    row = {"environment": REGULATOR, "random": "", "random_episodes": "", "reference": "0", "source": "exact", "versions": ""}
    write_records(path, [{**row, "environment": "known", "random": "1.25"}, row])
    scores.measure_random_returns(path)
    known, measured = read_records(path)
    assert known["random"] == "1.25"
    assert float(measured["random"]) < -100
    assert float(measured["random"]) == pytest.approx(scores.random_returns(REGULATOR, 50).mean(), abs=0.01)


def test_without_constants_it_is_said_what_to_copy(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"constants\.csv has no tasks: copy"):
        scores.measure_random_returns(tmp_path / "constants.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"scores need mine.*: copy the repository's"):
        scores.read_constants(Path("mine"))


def test_minutes_are_what_steps_cost_where_methods_were_measured_in_turn(tmp_path):
    experiment = make_experiment()
    write_records(tmp_path / "two.csv", make_rows(experiment))
    costs = [
        ("two", "A", "x", 100, 20.0),
        ("two", "A", "x", 300, 20.0),
        ("two", "A", "y", 100, 5.0),
        ("other", "B", "x", 1, 1),
    ]
    names = ("experiment", "algorithm", "environment", "timesteps", "cpu_seconds")
    write_records(tmp_path / training_cost.FILE, [dict(zip(names, row, strict=True)) for row in costs])
    runs = scores.read_runs(tmp_path, experiment)
    of_cell = runs[runs.seed == 0].groupby(["algorithm", "environment"])
    np.testing.assert_allclose(of_cell.get_group(("A", "x")).seconds, 0.1 * np.arange(5, 101, 5))
    np.testing.assert_allclose(of_cell.get_group(("A", "y")).seconds, 0.05 * np.arange(10, 201, 10))
    assert of_cell.get_group(("B", "x")).seconds.isna().all()  # never mixed with clocks of other days
    constants = pd.DataFrame({"random": {"x": 0.0, "y": 0.0}, "reference": {"x": 1.0, "y": 1.0}})
    minutes = scores.minutes_to(0.5, runs, experiment, constants)
    assert {key[:2] for key in minutes.index} == {("A", "x"), ("A", "y")}
    assert minutes["A", "x", 1] == pytest.approx(0.1 * 55 / 60)


def test_every_method_is_measured_in_every_turn(tmp_path, monkeypatch):
    methods = {
        "NPG": Method("NPG", None, {"n_steps": 64, "batch_size": 64}),
        "PG": Method("PG", None, {"n_steps": 48, "batch_size": 48}),
    }
    experiment = Experiment(
        "two", "", methods, {REGULATOR: 100}, (0,), environment_arguments={REGULATOR: {"n_envs": 1, "normalize": False}}
    )
    records = training_cost.measure(experiment, REGULATOR, steps=60, turns=2)
    assert [(record["turn"], record["algorithm"], record["timesteps"]) for record in records] == [
        (0, "NPG", 64),
        (0, "PG", 96),
        (1, "NPG", 64),
        (1, "PG", 96),
    ]
    assert all(float(str(record["cpu_seconds"])) > 0 for record in records)

    measured = []
    monkeypatch.setattr(training_cost, "EXPERIMENTS", {"two": experiment, "policy_gradients": experiment})
    monkeypatch.setattr(training_cost, "measure", lambda *key: measured.append(key[1]) or records)
    monkeypatch.setattr("sys.argv", ["training_cost", "--experiment", "two", "--results", str(tmp_path)])
    training_cost.main()
    training_cost.main()
    assert measured == [REGULATOR]  # once
    assert set(training_cost.seconds_per_step(tmp_path, "two").index) == {("NPG", REGULATOR), ("PG", REGULATOR)}


def test_seeds_of_several_tasks_do_not_add_up_to_a_claim():
    estimate = scores.mean([np.linspace(0.1, 1, 4)] * 3)
    assert estimate.n_seeds == 4
    assert not estimate.is_clear


def test_seeds_that_are_not_the_experiments_change_nothing(tmp_path):
    experiment = make_experiment()
    rows = make_rows(experiment)
    write_records(tmp_path / "two.csv", rows)
    expected = scores.read_runs(tmp_path, experiment)
    write_records(tmp_path / "two.csv", rows + [row | {"seed": 7, "return": 1e6} for row in rows])
    pd.testing.assert_frame_equal(
        scores.read_runs(tmp_path, experiment).reset_index(drop=True), expected.reset_index(drop=True)
    )
