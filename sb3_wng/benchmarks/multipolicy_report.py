"""Tables and figures of the multi-policy study, from its CSV files."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from sb3_wng.benchmarks.figures import save
from sb3_wng.benchmarks.gait_study import ENVIRONMENT, PAIRS
from sb3_wng.benchmarks.hill_grid import N_EPISODES
from sb3_wng.benchmarks.markdown import markdown, number
from sb3_wng.benchmarks.scores import read_constants
from sb3_wng.envs.goals import TwoGoals
from sb3_wng.envs.grid import cheapest_route, route_return


def goals_table(folder: Path) -> str:
    """Settings by runs that found every goal, goals found, worst policy's return and CPU seconds."""
    rows, table = pd.read_csv(folder / "multipolicy_goals.csv"), {}
    for name, group in rows.groupby("algorithm", sort=False):
        n_goals = group.n_goals.iloc[0]
        table[name] = {
            "all goals found": f"{(group.found == n_goals).sum()} of {len(group)} runs",
            "goals found": f"{group.found.mean():.1f} of {n_goals}",
            "return of the worst policy": number(group.return_worst.mean()),
            "CPU seconds": number(group.cpu_seconds.mean()),
        }
    return markdown(pd.DataFrame.from_dict(table, orient="index"))


def grid_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Targets by time-outs: runs whose greedy policy reaches the goal on low ground, return at the end, CPU seconds."""
    table: dict[str, dict[str, str]] = {}
    last = rows[rows.episodes.isin([0, N_EPISODES])]
    for (name, timeout), group in last.groupby(["algorithm", "timeout"], sort=False):
        solved = (group.greedy_return >= _second_best()).sum()
        row = table.setdefault(name, {})
        row[f"time-out {timeout}"] = f"{solved} of {len(group)}, {group['return'].mean():.1f}"
        row["CPU seconds"] = number(last[last.algorithm == name].cpu_seconds.mean())
    columns = [*(f"time-out {timeout}" for timeout in sorted(rows.timeout.unique())), "CPU seconds"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns)


def gaits_table(rows: pd.DataFrame, random: float) -> pd.DataFrame:
    """Pairs of gaits by returns and by how far apart they are.

    A single policy is one of a pair that is not repelled: of the same seed for copies, which have a common past.

    :param random: return of random actions, from which scores count
    """
    returns = rows[["return_0", "return_1"]]
    rows = rows.assign(mean=returns.mean(axis=1), worst=returns.min(axis=1))
    copies = rows[rows.algorithm == "copies"].set_index("seed")["mean"]
    alone = rows[rows.algorithm == "independent"]["mean"].mean()
    table = {}
    for name, group in rows.groupby("algorithm", sort=False):
        single = group.seed.map(copies) if PAIRS[str(name)].of_copies else pd.Series(alone, group.index)
        is_kept = (group.worst - random >= 0.9 * (single - random))[single.notna()]
        table[name] = {
            "return, mean": number(group["mean"].mean()),
            "of the worse policy": number(group.worst.mean()),
            "both reach 90 % of a single policy's score": f"{is_kept.sum()} of {len(is_kept)} pairs",
            "distance, median": f"{group.distance.median():.1f}",
            "smallest to largest": f"{group.distance.min():.1f} to {group.distance.max():.1f}",
            "CPU seconds": number(group.cpu_seconds.mean()),
        }
    return pd.DataFrame.from_dict(table, orient="index")


def _second_best() -> float:
    return route_return(cheapest_route(avoid=cheapest_route()[1:-1]))


def section(folder: Path) -> str:
    """Text and tables; the empty text while there are no numbers."""
    parts = []
    goals, grid, gaits = (folder / f"multipolicy_{name}.csv" for name in ("goals", "grid", "gaits"))
    if goals.exists():
        text = (
            "`python -m sb3_wng.benchmarks.multipolicy_study goals`: two policies (four) on TwoGoals, whose paths are "
            "compared, by NPG with a repulsion that falls; a goal is found if a policy's path ends near it."
        )
        parts.append(f"### Two goals in a plane, and four\n\n{text}\n\n{goals_table(folder)}")
    if (folder / "multipolicy_paths.csv").exists():
        parts.append("![Paths of two policies that repel each other, and their potentials](two_goals.png)")
    if gaits.exists():
        text = (
            "`python -m sb3_wng.benchmarks.gait_study`: two policies on HalfCheetahBullet, 250,000 steps each, from scratch "
            "(repelled from 20 % to 60 % of them) or as copies of one policy that had as many before (repelled up to 70 %), "
            "by posture and by which feet touch the ground. A single policy's return is the mean over the pairs that are not "
            "repelled, for copies those of the same seed; scores count from the return of random actions. Distances are "
            "$W_2^2$ between windows of 32 steps, relative to how much one policy's windows vary."
        )
        table = markdown(gaits_table(pd.read_csv(gaits), read_constants(folder).random[ENVIRONMENT]))
        parts.append(f"### Two gaits of one robot\n\n{text}\n\n{table}")
    if grid.exists():
        text = (
            "`python -m sb3_wng.benchmarks.multipolicy_study grid`: attraction to given routes by REINFORCE, and cloning. "
            f"Runs whose greedy policy gets {_second_best():.0f} or more (the best is {route_return(cheapest_route()):.0f}), "
        )
        text += "and the mean return of the last 600 episodes. CPU seconds per run, of runs that were trained side by side."
        table = markdown(grid_table(pd.read_csv(grid)))
        parts.append(f"### Attraction on the hill grid\n\n{text}\n\n{table}\n\n![Learning curves](multipolicy_grid.png)")
    return "## Several policies that attract or repel\n\n" + "\n\n".join(parts) + "\n" if parts else ""


def draw(folder: Path) -> None:
    """Figures beside the files: learning curves of the grid, paths and potentials of the goals."""
    if (folder / "multipolicy_grid.csv").exists():
        _draw_grid(folder / "multipolicy_grid.csv")
    if (folder / "multipolicy_paths.csv").exists():
        _draw_goals(folder)


def _draw_grid(path: Path) -> None:
    rows = pd.read_csv(path)
    timeouts = sorted(rows.timeout.unique())
    figure, panels = plt.subplots(1, len(timeouts), figsize=(4 * len(timeouts), 3.6), layout="constrained", sharey=True)
    for axes, timeout in zip(np.atleast_1d(panels), timeouts, strict=True):
        for index, (name, group) in enumerate(rows[rows.timeout == timeout].groupby("algorithm", sort=False)):
            color, by_episode = f"C{index}", group.groupby("episodes")["return"]
            mean = by_episode.mean()
            if len(mean) == 1:
                axes.axhline(mean.iloc[0], color=color, linestyle=":", label=name)
                continue
            axes.plot(mean.index, mean, color=color, label=name)
            axes.fill_between(mean.index, by_episode.min(), by_episode.max(), color=color, alpha=0.15, linewidth=0)
        axes.axhline(route_return(cheapest_route()), color="black", linewidth=0.8)
        axes.set(title=f"time-out {timeout}", xlabel="episodes")
        axes.grid(alpha=0.3)
    np.atleast_1d(panels)[0].set_ylabel("return (line: best)")
    handles, labels = np.atleast_1d(panels)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize="small")
    save(figure, path.with_suffix(".png"), path)


def _draw_goals(folder: Path) -> None:
    """One column per iteration: paths of both policies, then each policy's potential of a straight walk to every place."""
    files = folder / "multipolicy_paths.csv", folder / "multipolicy_maps.csv"
    paths, maps = map(pd.read_csv, files)
    iterations = sorted(paths.iteration.unique())
    figure, panels = plt.subplots(3, len(iterations), figsize=(2.7 * len(iterations), 7.8), layout="constrained", sharex=True)
    reach = maps.x.max()
    for column, iteration in zip(panels.T, iterations, strict=True):
        for (policy, _), path in paths[paths.iteration == iteration].groupby(["policy", "path"]):
            column[0].plot(path.x, path.y, color=f"C{policy}", alpha=0.5, linewidth=0.8)
        column[0].set_title(f"iteration {iteration}")
        for policy, axes in enumerate(column[1:]):
            shown = maps[(maps.iteration == iteration) & (maps.policy == policy)]
            values = shown.pivot(index="y", columns="x", values="potential")
            axes.contourf(values.columns, values.index, values, levels=15, cmap="viridis")
            ends = paths[(paths.iteration == iteration) & (paths.policy == policy) & (paths.step == paths.step.max())]
            axes.plot(ends.x, ends.y, ".", color="white", markersize=3)
        for axes in column:
            axes.plot(*zip(*TwoGoals().goals, strict=True), "*", color="red", markersize=9)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    for axes, label in zip(panels[:, 0], ("paths", "potential of the first", "potential of the second"), strict=True):
        axes.set_ylabel(label)
    save(figure, folder / "two_goals.png", *files)
