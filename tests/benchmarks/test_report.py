import dataclasses
import re
import shutil
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("sb3_contrib")
pytest.importorskip("pybullet_envs_gymnasium")

from PIL import Image  # noqa: E402

from sb3_wng.benchmarks import figures, learning_report, report, scores  # noqa: E402
from sb3_wng.benchmarks.experiments import DETERMINISTIC_OPTIMUM, EXPERIMENTS, PENDULUM, POLICY_GRADIENTS  # noqa: E402
from sb3_wng.benchmarks.models import Experiment, Method  # noqa: E402
from sb3_wng.benchmarks.records import write_records  # noqa: E402

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
# Experiments with finished cells, and their figures
SHOWN = {
    name: list(learning_report.experiment_figures(e, learning_report.read_runs(FOLDER, e))) for name, e in EXPERIMENTS.items()
}
LEARNING = [name for name, drawn in SHOWN.items() if drawn]
CHANGES = [
    ("update_cost.csv", "value"),
    ("training_cost.csv", "cpu_seconds"),
    ("gaussian_toy.csv", "loss"),
    ("conditioning.csv", "return"),
    ("svpg_speed.csv", "value"),
    ("evolution_speed.csv", "value"),
    ("penalty_cost.csv", "value"),
    *(
        (f"svpg_{name}.csv", "return_best")
        for name in ("ablations", "table", "temperature", "population_size", "weights", "weights_double_pendulum")
    ),
    ("svpg_visitation.csv", "share"),
    *((f"{name}.csv", "return") for name in ("point_wall", "ant_wall", "multipolicy_grid")),
    ("multipolicy_goals.csv", "return_worst"),
    ("multipolicy_gaits.csv", "return_0"),
    ("unseen_states.csv", "on_rollout"),
    *((f"{name}.csv", "return") for name in LEARNING),
]


def copy_data(folder: Path) -> Path:
    for csv in FOLDER.glob("*.csv"):
        shutil.copy(csv, folder)
    return folder


def test_the_committed_page_is_what_the_committed_numbers_say():
    assert report.page(FOLDER) == (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", report.TABLES_ELSEWHERE)
def test_tables_of_other_pages_are_what_the_committed_numbers_say(name):
    text = (FOLDER.parents[1] / name).read_text(encoding="utf-8")
    assert report.with_table(text, report.TABLES_ELSEWHERE[name](FOLDER)) == text


def test_every_algorithms_page_shows_its_results():
    pages = {str(path.relative_to(FOLDER.parents[1])) for path in (FOLDER.parent / "modules").glob("*.md")}
    assert pages <= report.TABLES_ELSEWHERE.keys()


def test_tables_of_other_pages_are_written_with_the_report(tmp_path):
    folder = tmp_path / "docs" / "benchmarks"
    folder.mkdir(parents=True)
    for needed in (scores.CONSTANTS, "evolution_speed.csv"):
        shutil.copy(FOLDER / needed, folder)
    guide = tmp_path / "docs" / "guide" / "scaling.md"
    guide.parent.mkdir()
    guide.write_text("before\n<!-- generated -->\nold\n<!-- /generated -->\nafter\n")
    report.write(folder)
    table = report.speed_report.workers_table(folder)
    assert guide.read_text() == f"before\n<!-- generated -->\n{table}\n<!-- /generated -->\nafter\n"
    assert "| ES, Ray |" in table
    with pytest.raises(ValueError, match="has 0 pairs of marks"):
        report.with_table("a page without one", table)


def test_the_readmes_table_has_the_best_first_and_only_what_is_finished(tmp_path):
    skip = {("NPG", environment, 40) for environment in POLICY_GRADIENTS.environments}
    write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: 100 * rank - 1e4, skip)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in learning_report.summary(tmp_path).splitlines()[2:]]
    assert rows == [name for name in reversed(POLICY_GRADIENTS.methods) if name != "NPG"]


def test_the_readmes_table_waits_until_a_task_has_as_many_methods_as_the_others(tmp_path):
    skip = {(name, PENDULUM, 40) for name in POLICY_GRADIENTS.methods if name not in ("WNPG", "NPG")}
    write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: 100.0 * rank, skip)
    table = learning_report.summary(tmp_path)
    assert "InvertedDoublePendulum" not in table
    assert all(f"| {name} |" in table for name in POLICY_GRADIENTS.methods)


def test_results_of_ones_own_leave_the_pages_of_a_checkout_alone(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text("mine")
    shutil.copy(FOLDER / "evolution_speed.csv", folder)
    report.write(folder)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "ES, ray |" in (folder / "README.md").read_text()


def test_scores_of_ones_own_runs_have_the_repositorys_constants(tmp_path):
    text = write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: 100.0 * rank)
    assert "Interquartile mean over Hopper" in text
    (tmp_path / scores.CONSTANTS).unlink()
    assert learning_report.section(POLICY_GRADIENTS, tmp_path) == text


def test_finished_runs_are_those_of_the_experiment(tmp_path):
    rows = {"algorithm": "WNPG", "environment": PENDULUM, "timesteps": 100, "return": 1.0}
    pd.DataFrame([{**rows, "seed": seed} for seed in (40, 41, 1, 2)]).to_csv(tmp_path / "policy_gradients.csv", index=False)
    assert ": 2 of 520 runs are finished, no cell" in learning_report.section(POLICY_GRADIENTS, tmp_path)


@pytest.mark.parametrize(("file", "column"), CHANGES)
def test_a_changed_number_changes_the_page(file, column, tmp_path):
    path = tmp_path / file
    # alone but for what belongs to it, as the page of all files takes long
    others = [FOLDER / f"{name}.csv" for name in LEARNING] if file == "training_cost.csv" else []
    for needed in (FOLDER / scores.CONSTANTS, *others, *FOLDER.glob(f"{Path(file).stem}*.csv")):
        shutil.copy(needed, tmp_path)
    page = report.page(tmp_path)
    table = pd.read_csv(path)
    table[column] = 1.5 * table[column] + table.index
    table.to_csv(path, index=False)
    assert report.page(tmp_path) != page


def fingerprint(figure: Path) -> str:
    """Of the numbers that a figure was drawn from."""
    with Image.open(figure) as image:
        return image.text["Description"]


def test_the_committed_figures_are_those_of_the_page_and_of_the_committed_numbers(tmp_path):
    report.write(copy_data(tmp_path))
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {part.partition(")")[0] for part in page.split("](")[1:] if ".png)" in part}
    stale = [name for name in drawn if fingerprint(FOLDER / name) != fingerprint(tmp_path / name)]
    assert not stale, "run python -m sb3_wng.benchmarks report"
    assert {path.name for path in FOLDER.glob("*.png")} == drawn


# --- Sections of invented numbers, larger than what is committed ---


def fake_rows(experiment: Experiment, value, skip=()) -> list[dict[str, object]]:
    return [
        {
            "experiment": experiment.name,
            "algorithm": method,
            "environment": environment,
            "seed": seed,
            "timesteps": timesteps * index // experiment.n_bins,
            "return": value(rank, index / experiment.n_bins, seed),
            "wall_seconds": 2 * index,
        }
        for rank, method in enumerate(experiment.methods)
        for environment, timesteps in experiment.environments.items()
        for seed in experiment.seeds
        for index in range(1, experiment.n_bins + 1)
        if (method, environment, seed) not in skip
    ]


def write_fake(folder: Path, experiment: Experiment, value, skip=()) -> str:
    shutil.copy(FOLDER / scores.CONSTANTS, folder)
    write_records(folder / f"{experiment.name}.csv", fake_rows(experiment, value, skip))
    return learning_report.section(experiment, folder)


def test_an_unfinished_cell_stays_empty_and_out_of_the_aggregates(tmp_path):
    environment = next(iter(POLICY_GRADIENTS.environments))
    skip = {("BGPG", environment, POLICY_GRADIENTS.seeds[-1])}
    text = write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: 1000 * share + seed, skip)
    rows = [line for line in text.splitlines() if line.startswith("| BGPG | ")]
    _, returns, _, aggregates, areas, minutes = (row for row in rows if "652" not in row)  # the paper's row stands beside ours
    assert returns.split("|")[2].strip() == ""
    assert returns.split("|")[3].strip() != ""
    assert minutes.split("|")[2].strip() == ""
    assert {part.strip() for part in (aggregates + areas).split("|")[2:-1]} <= {"", "BGPG"}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_an_experiment_of_which_one_run_is_finished_says_so(experiment, tmp_path):
    first = (next(iter(experiment.methods)), next(iter(experiment.environments)), experiment.seeds[0])
    keys = {(m, e, s) for m in experiment.methods for e in experiment.environments for s in experiment.seeds}
    text = write_fake(tmp_path, experiment, lambda *_: -1.0, skip=keys - {first})
    assert f": 1 of {len(keys)} runs are finished" in text
    assert "|" not in text
    learning_report.draw(experiment, tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert ".png" not in text


def test_methods_that_learn_faster_take_fewer_minutes(tmp_path):
    ceilings = {"WNPG": 20_000, "NPG": 8_000}  # of twenty equal steps, a reference of 9360 asks for five and thirteen
    few = dataclasses.replace(
        POLICY_GRADIENTS,
        methods={name: POLICY_GRADIENTS.methods[name] for name in [*ceilings, "PG"]},
        environments={PENDULUM: 200_000},
        baselines=("NPG",),
    )
    text = write_fake(tmp_path, few, lambda rank, share, seed: [*ceilings.values(), 100][rank] * share)
    table = text[text.index("Median minutes") :].splitlines()[2:7]
    minutes = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table}
    n = len(few.seeds)
    assert float(minutes["WNPG"].split()[0]) < float(minutes["NPG"].split()[0])
    assert minutes["PG"] == f"never (0/{n})"


def test_only_clear_differences_are_called_better(tmp_path):
    # WNPG, the first method, is 500 better on every seed; the others differ by as much in either direction
    def value(rank, share, seed):
        return (500 if rank == 0 else 0) + 1000 * share + 100 * (-1) ** (rank + seed)

    text = write_fake(tmp_path, POLICY_GRADIENTS, value)
    of_scores, of_areas = text.split("The same of areas")
    claims, areas = (re.findall("^- .+ than .+$", part, re.MULTILINE) for part in (of_scores, of_areas))
    better = [[line for line in part if ": WNPG is better than NPG (" in line] for part in (claims, areas)]
    assert len(better[0]) == 1 + len(POLICY_GRADIENTS.environments)
    assert len(better[1]) == 1 + len(POLICY_GRADIENTS.environments) - len(POLICY_GRADIENTS.saturating)
    rest = [line for line in claims + areas if line not in better[0] + better[1]]
    assert rest
    assert all(re.search(r" is worse than WNPG \([^()]*\)$", line) for line in rest), rest  # and than nobody else


def test_a_method_that_learns_faster_to_the_same_end_is_better_by_area_alone(tmp_path):
    def value(rank, share, seed):
        return 1000 * share ** (0.5 if rank == 0 else 1.0) if share < 1 else 1000.0

    hopper = dataclasses.replace(POLICY_GRADIENTS, environments={"HopperBulletEnv-v0": 200_000}, saturating=(), n_bins=10)
    of_scores, of_areas = write_fake(tmp_path, hopper, value).split("The same of areas")
    assert "better" not in of_scores
    assert "- Hopper: WNPG is better than NPG" in of_areas
    first, second = (
        next(line for line in of_areas.splitlines() if line.startswith(f"| {name} | ")) for name in ("WNPG", "NPG")
    )
    score, less = (part.split(" [")[0] for part in (first.split("|")[2], first.split("|")[4]))  # the second baseline is NPG
    assert float(score) == pytest.approx(float(second.split("|")[2].split(" [")[0]) + float(less), abs=0.011)


def test_three_seeds_make_no_claim(tmp_path):
    few = dataclasses.replace(POLICY_GRADIENTS, seeds=(40, 41, 42))
    text = write_fake(tmp_path, few, lambda rank, share, seed: 500 * rank + seed)
    assert "better" not in text
    assert "- none" in text


@pytest.mark.parametrize("experiment", [POLICY_GRADIENTS, DETERMINISTIC_OPTIMUM], ids=lambda e: e.name)
def test_every_figure_of_a_finished_experiment_can_be_drawn(experiment, tmp_path):
    text = write_fake(tmp_path, experiment, lambda rank, share, seed: -(10 ** (2 - 6 * share)) * (1 + rank + seed / 50))
    learning_report.draw(experiment, tmp_path)
    names = {path.name for path in tmp_path.glob("*.png")}
    extra = "scores" if experiment.baselines else "sensitivity"
    assert names == {f"{experiment.name}.png", f"{experiment.name}_{extra}.png"}
    assert all(f"]({name})" in text for name in names)


def test_claims_of_single_tasks_are_folded_away(tmp_path):
    text = write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: -100 * rank)
    shown = re.sub(r"<details>\n<summary>On single tasks</summary>\n\n(- .+\n)+\n</details>", "", text)
    assert shown.count("<details>") == shown.count("<summary>All differences over tasks</summary>") == 2
    assert text.count("- Hopper: WNPG is better") == 2  # by the final return, and by area
    assert "- Hopper: WNPG is better" not in shown
    assert shown.count("- All tasks: WNPG is better") == 2


def test_published_numbers_stand_beside_ours(tmp_path):
    text = write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: share)
    assert "| WNPG, published | 2235 | 1655 | 683 | 6741 |" in text
    assert "Moskovitz et al. 2021" in text


def test_tasks_without_runs_have_no_panels():
    tasks = ["Done-v0", "ToDo-v0"]
    experiment = Experiment("name", "", {"PPO": Method("PPO")}, dict.fromkeys(tasks, 100), (0,))
    runs = pd.DataFrame(
        {"environment": tasks[0], "algorithm": "PPO", "timesteps": [50, 100], "return": [1.0, 2.0], "seconds": [1.0, 2.0]}
    )
    figure = figures.learning_figure(experiment, runs)
    assert [axes.get_title() for axes in figure.axes] == ["Done", "Done"]


def test_finished_tasks_are_compared_before_a_method_has_every_task(tmp_path):
    text = write_fake(tmp_path, POLICY_GRADIENTS, lambda rank, share, seed: -100 * rank)
    every = "Hopper, HalfCheetah, Walker2D and InvertedDoublePendulum"
    assert f"Interquartile mean over {every}" in text
    assert "- All tasks: WNPG is better than" in text
    path = tmp_path / "policy_gradients.csv"
    rows = pd.read_csv(path)
    rows[~(rows.environment.str.contains("Hopper|Walker") & (rows.algorithm == "WNPG"))].to_csv(path, index=False)
    text = learning_report.section(POLICY_GRADIENTS, tmp_path)
    assert "Interquartile mean over HalfCheetah and InvertedDoublePendulum and all seeds" in text
    assert "- HalfCheetah and InvertedDoublePendulum: WNPG is better than" in text
    rows[(rows.environment == PENDULUM) & (rows.algorithm != "NPG")].to_csv(path, index=False)
    text = learning_report.section(POLICY_GRADIENTS, tmp_path)
    assert "Interquartile mean" not in text
    assert " and InvertedDoublePendulum:" not in text
    gap = f"{100 * list(POLICY_GRADIENTS.methods).index('PPO') / (9360 - 284):.2f}"
    (claims,) = {line for line in text.splitlines() if line.startswith("- InvertedDoublePendulum: WNPG is better than")}
    assert f" PPO ({gap} [{gap}, {gap}])" in claims
    assert "than NPG" not in text
    clauses = [line for line in text.splitlines() if "PPO is " in line and line.startswith("- ")]
    assert len(clauses) == 1  # TRPO's difference from PPO is not said twice
    assert " TRPO (" in clauses[0]
