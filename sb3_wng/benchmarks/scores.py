"""From returns to scores, and from scores to statements: interquartile means, intervals, paired differences.

A score is (return - random) / (reference - random): 0 for random actions, 1 for the reference, both constants of the task in
a CSV file that is committed before experiments run. Aggregates follow Agarwal et al. 2021 (arXiv 2108.13264): interquartile
means over all runs, intervals from a bootstrap stratified by task, performance profiles. They are computed with
``scipy.stats.trim_mean`` and ``scipy.stats.bootstrap`` (whose resampling of several samples is that stratification), and not
with rliable: two calls replace it, while its dependency arch does not import with current pandas. No claim rests on that
bootstrap, whose percentile intervals are too narrow for few seeds (ten Gaussian values: 90 % in place of 95): means and paired
differences have t-intervals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sb3_wng.benchmarks.models import Experiment, register_environments
from sb3_wng.benchmarks.records import RESULTS, read_records, versions, write_records
from sb3_wng.benchmarks.training_cost import seconds_per_step

Array = NDArray[np.float64]
CONSTANTS = "reference_scores.csv"
N_RANDOM_EPISODES = 50
MIN_PAIRS = 10  # seeds that a claim needs
N_RESAMPLES = 5000


class Estimate(NamedTuple):
    """A statistic with its 95 % interval and the number of seeds it rests on."""

    value: float
    low: float
    high: float
    n_seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether a claim may be made: at least ten seeds and an interval without zero."""
        return self.n_seeds >= MIN_PAIRS and (self.low > 0 or self.high < 0)

    def text(self, digits: int = 2) -> str:
        """Value and interval."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interquartile_mean(samples: Sequence[Array]) -> Estimate:
    """IQM over all values of all tasks; each task's seeds, shape (n,), are resampled on their own."""
    n_seeds = min(len(sample) for sample in samples)
    value = float(stats.trim_mean(np.concatenate(samples), 0.25))
    if n_seeds < 2:
        return Estimate(value, np.nan, np.nan, n_seeds)
    result = stats.bootstrap(
        tuple(samples),
        lambda *resampled, axis: stats.trim_mean(np.concatenate(resampled, axis=-1), 0.25, axis=-1),
        n_resamples=N_RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high), n_seeds)


def mean(samples: Sequence[Array]) -> Estimate:
    """Mean over all values of all tasks: seeds, or differences of paired seeds, shape (n,), with a spread for each task.

    The interval is Student's; over tasks, with the degrees of freedom of Welch and Satterthwaite (Welch 1947, eq. 28).
    """
    sizes = np.array([len(sample) for sample in samples])
    value, n_seeds = float(np.concatenate(samples).mean()), int(sizes.min())
    if n_seeds < 2:
        return Estimate(value, np.nan, np.nan, n_seeds)
    # Of each task's share of the mean
    variances = np.array([sample.var(ddof=1) for sample in samples]) * sizes / sizes.sum() ** 2
    if not variances.any():
        return Estimate(value, value, value, n_seeds)
    degrees = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    half = float(stats.t.ppf(0.975, degrees) * np.sqrt(variances.sum()))
    return Estimate(value, value - half, value + half, n_seeds)


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Share of runs whose score exceeds each threshold, shape of the thresholds."""
    return (scores[:, None] > thresholds).mean(axis=0)


# --- Tables of runs ---


def read_runs(folder: Path, experiment: Experiment) -> pd.DataFrame:
    """Bins of all runs of an experiment's methods, tasks and seeds, in the experiment's order; a cell (method and task) only
    if all its seeds are there. ``seconds`` is what the steps cost where an experiment's methods were measured in turn (none
    for those that were not), else the run's own."""
    path = folder / f"{experiment.name}.csv"
    runs = pd.DataFrame(read_records(path) or {"algorithm": [], "environment": [], "seed": [], "timesteps": [], "return": []})
    for column in ("wall_seconds", "cpu_seconds"):  # empty for runs that were suspended meanwhile, and before it was recorded
        runs[column] = pd.to_numeric(runs[column]) if column in runs else np.nan
    runs["seconds"] = runs["cpu_seconds"].fillna(runs["wall_seconds"])
    runs = runs.astype({"seed": int, "timesteps": int, "return": float})
    if len(rates := seconds_per_step(folder, experiment.name)):
        cells = pd.MultiIndex.from_frame(runs[["algorithm", "environment"]])
        runs["seconds"] = runs["timesteps"] * rates.reindex(cells).to_numpy()
    wanted = list(experiment.methods), list(experiment.environments)
    runs = runs[runs.algorithm.isin(wanted[0]) & runs.environment.isin(wanted[1]) & runs.seed.isin(experiment.seeds)]
    n_seeds = runs.groupby(["algorithm", "environment"])["seed"].transform("nunique")
    runs = runs[n_seeds == len(experiment.seeds)].copy()
    for column, order in zip(("algorithm", "environment"), wanted, strict=True):
        runs[column] = pd.Categorical(runs[column], order)
    return runs.sort_values(["algorithm", "environment", "seed", "timesteps"]).astype({"algorithm": str, "environment": str})


def final_returns(runs: pd.DataFrame, experiment: Experiment) -> pd.Series:
    """Mean return in the last 10 % of the steps, by algorithm, environment and seed."""
    last = runs[runs.timesteps > 0.9 * runs.environment.map(experiment.environments)]
    return last.groupby(["algorithm", "environment", "seed"], sort=False)["return"].mean()


def mean_returns(runs: pd.DataFrame, experiment: Experiment) -> pd.Series:
    """Area under the learning curve over its length; bins in which no episode ended are interpolated."""

    def area(run: pd.DataFrame) -> float:
        end = experiment.environments[run.name[1]]
        grid = np.arange(1, experiment.n_bins + 1) * (end // experiment.n_bins)
        return float(np.interp(grid, run["timesteps"], run["return"]).mean())

    groups = runs.groupby(["algorithm", "environment", "seed"], sort=False)[["timesteps", "return"]]
    return groups.apply(area) if len(runs) else pd.Series(dtype=float)


def scores(runs: pd.DataFrame, experiment: Experiment, constants: pd.DataFrame) -> pd.DataFrame:
    """A row for each seed, columns (algorithm, environment); of the area where a task saturates, else of the final return."""
    final, area = final_returns(runs, experiment), mean_returns(runs, experiment)
    if final.empty:
        return pd.DataFrame(index=pd.Index([], name="seed"))
    saturates = final.index.get_level_values("environment").isin(experiment.saturating)
    returns = final.where(~saturates, area)
    random, reference = (
        returns.index.get_level_values("environment").map(constants[name]) for name in ("random", "reference")
    )
    return ((returns - random) / (reference - random)).unstack(["algorithm", "environment"])


def minutes_to(score: float, runs: pd.DataFrame, experiment: Experiment, constants: pd.DataFrame) -> pd.Series:
    """Minutes until returns, averaged over a tenth of the steps, reach a score; inf for runs that never do, by algorithm,
    environment and seed. Runs without a clock are left out.
    """
    window = max(experiment.n_bins // 10, 1)

    def minutes(run: pd.DataFrame) -> float:
        random, reference = constants.loc[run.name[1], ["random", "reference"]]
        has_reached = run["return"].rolling(window).mean() >= random + score * (reference - random)
        return float(run["seconds"][has_reached].min() / 60) if has_reached.any() else np.inf

    timed = runs.dropna(subset="seconds")
    groups = timed.groupby(["algorithm", "environment", "seed"], sort=False)[["return", "seconds"]]
    return groups.apply(minutes) if len(timed) else pd.Series(dtype=float)


def samples(table: pd.DataFrame, methods: Iterable[str], environments: Collection[str]) -> dict[str, list[Array]]:
    """Scores on each environment, in order of seeds, of every method that has finished them all."""
    return {
        method: [table[method, environment].to_numpy() for environment in environments]
        for method in methods
        if environments and all((method, environment) in table for environment in environments)
    }


def aggregated_tasks(table: pd.DataFrame, experiment: Experiment) -> list[str]:
    """The tasks over which aggregates go: those that the experiment's first method has finished, if they are two or all."""
    subject = next(iter(experiment.methods))
    done = [environment for environment in experiment.environments if (subject, environment) in table]
    return done if len(done) >= min(2, len(experiment.environments)) else []


def paired_differences(first: Sequence[Array], second: Sequence[Array]) -> list[Array]:
    """Differences of scores of the same seed, by environment."""
    return [a - b for a, b in zip(first, second, strict=True)]


# --- Constants ---


def read_constants(folder: Path) -> pd.DataFrame:
    """Return of random actions and of the reference, by environment; the repository's, where a folder has none of its own.

    :raises FileNotFoundError: outside the repository, if the folder has none
    """
    path = folder / CONSTANTS if (folder / CONSTANTS).exists() else RESULTS / CONSTANTS
    if not path.exists():
        raise FileNotFoundError(f"scores need {folder / CONSTANTS}: copy the repository's docs/benchmarks/{CONSTANTS} there")
    return pd.read_csv(path).set_index("environment")


def random_returns(environment: str, n_episodes: int, seed: int = 0) -> Array:
    """Returns of episodes with uniform random actions, shape (n_episodes,)."""
    import gymnasium

    register_environments()
    env = gymnasium.make(environment)
    env.action_space.seed(seed)
    returns = np.zeros(n_episodes)
    for episode in range(n_episodes):
        env.reset(seed=seed if episode == 0 else None)
        is_over = False
        while not is_over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[episode] += float(reward)
            is_over = terminated or truncated
    env.close()
    return returns


def measure_random_returns(path: Path) -> None:
    """Fill in the random returns that a file of constants lacks; those it has are never changed."""
    rows: list[dict[str, object]] = [dict(row) for row in read_records(path)]
    if not rows:
        raise ValueError(f"{path} has no tasks: copy the repository's docs/benchmarks/{CONSTANTS}, and add rows to it")
    for row in rows:
        if not row["random"]:
            returns = random_returns(str(row["environment"]), N_RANDOM_EPISODES)
            row.update(random=f"{returns.mean():.2f}", random_episodes=N_RANDOM_EPISODES, versions=versions())
            print(row["environment"], row["random"], flush=True)
            write_records(path, rows)
