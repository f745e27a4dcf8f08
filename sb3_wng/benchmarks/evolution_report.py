"""Table and figures of the evolution strategies' study, from CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import binomtest, fisher_exact

from sb3_wng.benchmarks.evolution_study import ITERATIONS_PER_RECORD, STUDIES, Study
from sb3_wng.benchmarks.figures import save
from sb3_wng.benchmarks.markdown import markdown
from sb3_wng.benchmarks.scores import mean

N_LAST = 10  # policies whose mean return is a run's result
# Boxes (x, y, width, height) in metres, goals, and the range that the pictures show
WALLS = {
    "PointWall-v0": ([(13.7, -2.0, 0.6, 4.0), (12.0, -2.3, 2.0, 0.6), (12.0, 1.7, 2.0, 0.6)], (25.0, 0.0), (-5, 45, -18, 18)),
    "AntWall-v0": ([(4.7, -2.0, 0.6, 4.0), (4.0, -2.0, 1.0, 0.6), (4.0, 1.4, 1.0, 0.6)], (15.0, 0.0), (-5, 20, -10, 10)),
}
TITLES = {"point_wall": "Evolution strategies before a wall: Point", "ant_wall": "Evolution strategies before a wall: Ant"}


def final_returns(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per run: algorithm, seed, and the mean return of its last policies."""
    n_records = N_LAST // ITERATIONS_PER_RECORD
    last = curves.sort_values("timesteps").groupby(["algorithm", "seed"], sort=False).tail(n_records)
    return last.groupby(["algorithm", "seed"], sort=False, as_index=False)["return"].mean()


def ends_past_the_wall(paths: pd.DataFrame, study: Study) -> pd.Series:
    """Whether each run's path ends farther than the wall's back."""
    x, _, depth, _ = WALLS[study.environment][0][0]
    return paths["x"].map(lambda path: float(path.split()[-1])) > x + depth


def results_table(finals: pd.DataFrame, paths: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Methods by escapes with Wilson's interval, against ES by Fisher's exact test, mean returns with an interval, and
    paths that end past the wall."""
    escaped = {name: finals.loc[finals.algorithm == name, "return"] > study.escape_return for name in study.methods}
    paths = paths.merge(finals[["algorithm", "seed"]])  # a path is there before its curve
    is_past, rows = ends_past_the_wall(paths, study), {}
    for name in study.methods:
        returns = finals.loc[finals.algorithm == name, "return"].to_numpy()
        if len(returns) < 2:
            continue
        n_escaped, n = int(escaped[name].sum()), len(returns)
        rate = binomtest(n_escaped, n).proportion_ci(method="wilson")
        rows[name] = {
            "escaped": f"{n_escaped}/{n} [{rate.low:.2f}, {rate.high:.2f}]",
            "against ES, p": "" if name == "ES" or escaped["ES"].empty else _p_value(escaped[name], escaped["ES"]),
            "mean return": mean([returns]).text(digits=0),
            "median": f"{np.median(returns):.0f}",
            "of those that escaped": f"{returns[escaped[name]].mean():.0f}" if n_escaped else "",
            "ends past the wall": f"{is_past[paths.algorithm == name].sum()}/{n}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _p_value(escaped: pd.Series, reference: pd.Series) -> str:
    counts = [[int(outcome.sum()), int((~outcome).sum())] for outcome in (escaped, reference)]
    return f"{fisher_exact(counts).pvalue:.2g}"


def section(folder: Path) -> str:
    """Text, tables and figures of the studies that have results; the empty text while there are none."""
    parts = []
    for key, study, table in _tables(folder):
        steps = study.n_iterations * (2 * study.common["n_delta"] + 1)
        n_recorded = study.n_iterations // ITERATIONS_PER_RECORD * ITERATIONS_PER_RECORD
        text = (
            f"`python -m sb3_wng.benchmarks.evolution_study {key}`: {study.n_iterations} iterations, {steps:,} episodes on "
            f"{study.environment}. A run has escaped if its policies {n_recorded - N_LAST + 1} to {n_recorded} return more "
            f"than {study.escape_return:.0f} on average, exploration noise included, which no policy in the pocket does. "
            "Rates with Wilson's 95 % interval and Fisher's exact test against ES (two-sided, not corrected for the number of "
            "methods), mean returns with a 95 % interval. The last column counts the paths below, one noise-free episode of "
            "each run's last policy, that end past the wall, wherever they go from there."
        )
        text = f"{text} {study.notes}".rstrip()
        figures = f"![Paths of the last policies]({key}_paths.png)\n\n![Learning curves]({key}.png)"
        parts.append(f"## {TITLES[key]}\n\n{text}\n\n{markdown(table)}\n\n{figures}\n")
    return "\n".join(parts)


def excerpt(folder: Path, algorithm: str) -> str:
    """Of the results before the point's wall, all settings of one algorithm, and ES at the published and at our settings."""
    table = next(table for key, _, table in _tables(folder) if key == "point_wall")
    shown = [name for name in table.index if name.partition(",")[0] == algorithm or name in ("ES", "ES, ours")]
    return markdown(table.loc[shown])


def draw(folder: Path) -> None:
    """Both figures of every study that has results."""
    for key, study, _ in _tables(folder):
        curves, paths = folder / f"{key}.csv", folder / f"{key}_paths.csv"
        _draw_curves(study, pd.read_csv(curves), curves)
        _draw_paths(study, pd.read_csv(paths), paths)


def _tables(folder: Path) -> Iterator[tuple[str, Study, pd.DataFrame]]:
    """Studies of which a method has two runs or more, by their names, with their tables."""
    for key, study in STUDIES.items():
        path = folder / f"{key}.csv"
        if not path.exists():
            continue
        table = results_table(final_returns(pd.read_csv(path)), pd.read_csv(folder / f"{key}_paths.csv"), study)
        if not table.empty:
            yield key, study, table


def _draw_curves(study: Study, curves: pd.DataFrame, path: Path) -> None:
    """Every run, and the median of the method."""
    names = [name for name in study.methods if (curves.algorithm == name).any()]
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names, strict=True):
        runs = curves[curves.algorithm == name]
        for _, run in runs.groupby("seed"):
            axes.plot(run.timesteps / 1000, run["return"], color="C0", alpha=0.35, linewidth=0.8)
        median = runs.groupby("timesteps")["return"].median()
        axes.plot(median.index / 1000, median, color="C3")
        axes.axhline(study.escape_return, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize="small")
        axes.set_ylim(2 * study.escape_return, 0.75 * study.escape_return)
    figure.supxlabel("thousand environment steps", fontsize="small")
    figure.supylabel("return of the policy; median in red", fontsize="small")
    save(figure, path.with_suffix(".png"), path)


def _draw_paths(study: Study, paths: pd.DataFrame, path: Path) -> None:
    """Where each run's last policy goes without noise, red if that one episode does not end past the wall."""
    names = [name for name in study.methods if (paths.algorithm == name).any()]
    figure, panels = _grid(len(names))
    walls, goal, (left, right, bottom, top) = WALLS[study.environment]
    is_past = ends_past_the_wall(paths, study)
    for axes, name in zip(panels, names, strict=True):
        for box in walls:
            axes.add_patch(Rectangle(box[:2], *box[2:], color="0.3"))
        axes.plot(*goal, marker="*", color="C2", markersize=9)
        for index, run in paths[paths.algorithm == name].iterrows():
            x, y = (np.array(run[key].split(), dtype=float) for key in ("x", "y"))
            axes.plot(x, y, color="C0" if is_past[index] else "C3", alpha=0.7, linewidth=0.9)
        axes.set_title(name, fontsize="small")
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    figure.supxlabel(
        "x (m); one noise-free episode per run; blue: ends past the wall, red: does not, star: goal", fontsize="small"
    )
    save(figure, path.with_suffix(".png"), path)


def _grid(n: int) -> tuple[Figure, list[Axes]]:
    n_columns = 2 if n == 4 else 3
    n_rows = -(-n // n_columns)
    size = 9, 7.5 / n_columns * n_rows
    figure, panels = plt.subplots(
        n_rows, n_columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    axes = list(panels.flat)
    for unused in axes[n:]:
        unused.set_visible(False)
    for lowest in axes[max(n - n_columns, 0) : n]:
        lowest.tick_params(labelbottom=True)
    return figure, axes[:n]
