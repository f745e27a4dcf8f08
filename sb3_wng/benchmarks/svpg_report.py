"""Tables and figures of the SVPG study, from its CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_wng.benchmarks.figures import save
from sb3_wng.benchmarks.markdown import markdown, number
from sb3_wng.benchmarks.scores import MIN_PAIRS, mean
from sb3_wng.benchmarks.svpg_study import ITERATIONS, N_BINS, experiments

TITLES = {
    "table": "Table 1 of Liu et al. 2017: best return of a particle (published), iterations to within 5% of it",
    "temperature": "Temperature on CartPoleSwingUp (published, read off the figure)",
    "population_size": "Population size at equal total steps, REINFORCE on CartPoleSwingUp",
    "ablations": "What SVPG is made of, REINFORCE on CartPoleSwingUp",
    "weights": "The same on CartPole: growing weights, and larger ones at first",
    "weights_double_pendulum": "The same on DoublePendulum: growing weights, larger ones at first, and selection",
}
MODES = ("svpg", "radial, no interaction", "joint", "independent")  # what the other settings of the ablations vary
CONTROL = "radial, no interaction"
TRIAL_SEEDS = (0, 1, 2)  # on which settings of the ablations were looked for: no claim rests on them
UPRIGHT = 0.4  # rad: two cells to each side
COLUMNS = ["best", "best at the end", "mean at the end", "repulsion ratio", "parameter norm", "seeds"]


def kind_of(algorithms: pd.Series) -> pd.Series:
    """The particles of Table 1's rows; the empty text elsewhere, where all are REINFORCE's."""
    return algorithms.str.extract("^(A2C|REINFORCE) ", expand=False).fillna("")


def read_runs(path: Path) -> pd.DataFrame:
    """A study's records, of each kind of particles on a task those of the share of the published iterations that most of its
    runs have (the larger of two that are as many): runs of different lengths are not averaged."""
    rows = pd.read_csv(path)
    kinds = rows.groupby(["environment", kind_of(rows.algorithm)], sort=False)
    chosen = pd.concat([of_kind[of_kind.share == _usual_share(of_kind)] for _, of_kind in kinds]).sort_index()
    tasks = list(ITERATIONS)  # in whose order tables and figures are, whichever runs were made first
    return chosen.sort_values("environment", key=lambda names: names.map(tasks.index), kind="stable")


def _usual_share(rows: pd.DataFrame) -> float:
    n_runs = rows.drop_duplicates(["algorithm", "seed", "share"]).share.value_counts()
    return float(n_runs.index[n_runs == n_runs.max()].max())


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run: its best return, when it was reached, and the last tenth of the curve."""
    records = []
    keys = ["algorithm", "environment", "seed", "share"]
    for key, curve in rows.groupby(keys, sort=False):
        best = curve.return_best.max()
        tail = curve[curve.iteration > 0.9 * curve.iteration.max()]
        close = curve.iteration[curve.return_best >= best - 0.05 * abs(best)].min()
        records.append(
            {
                **dict(zip(keys, key, strict=True)),
                "best": best,
                "iterations": close,
                "best at the end": tail.return_best.mean(),
                "mean at the end": tail.return_mean.mean(),
                "repulsion ratio": tail.repulsion_ratio.mean(),
                "parameter norm": tail.parameter_norm.mean(),
                "published": curve.published.iloc[0],
            }
        )
    return pd.DataFrame(records)


def table_of_tasks(runs: pd.DataFrame) -> pd.DataFrame:
    """Algorithms by tasks: mean and standard deviation over seeds of the best return, published value, iterations."""
    cells: dict[str, dict[str, str]] = {}
    for (environment, name), group in runs.groupby(["environment", "algorithm"], sort=False):
        published = group.published.iloc[0]
        known = "" if pd.isna(published) else f" ({number(published)})"
        spread = f" +- {number(group.best.std())}" if len(group) > 1 else ""
        cell = f"{number(group.best.mean())}{spread}{known}, {group.iterations.mean():.0f} it."
        cells.setdefault(_short(environment), {})[name] = cell
    rows = [name for name in experiments()["table"] if any(name in of_task for of_task in cells.values())]
    return pd.DataFrame(cells, index=rows).fillna("")


def tasks_table(folder: Path) -> str:
    """Table 1 alone."""
    return markdown(table_of_tasks(summary(read_runs(folder / "svpg_table.csv"))))


def table_of_settings(runs: pd.DataFrame) -> pd.DataFrame:
    """Settings by what was measured: means over seeds, and the standard deviation of the best return."""
    rows = {}
    for name, group in runs.groupby("algorithm", sort=False):
        published = group.published.iloc[0]
        row = {column: number(group[column].mean()) for column in COLUMNS[:-1]}
        row["best"] += f" +- {number(group.best.std())}" if len(group) > 1 else ""
        row["best"] += "" if pd.isna(published) else f" ({number(published)})"
        rows[name] = {**row, "seeds": str(len(group))}
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)


def differences(runs: pd.DataFrame) -> str:
    """Settings less the control, paired by seed; the empty text while none has enough seeds for a claim."""
    kept = runs[~runs.seed.isin(TRIAL_SEEDS)].set_index(["seed", "share", "algorithm"])[["best at the end", "mean at the end"]]
    by_setting = kept.unstack("algorithm").swaplevel(axis="columns")
    lines = []
    for name in runs.algorithm.unique():
        if name == CONTROL or not {name, CONTROL} <= set(by_setting.columns.levels[0]):
            continue
        pairs = (by_setting[name] - by_setting[CONTROL]).dropna()
        if len(pairs) >= MIN_PAIRS:
            estimates = {column: mean([values.to_numpy()]) for column, values in pairs.items()}
            texts = [f"{column} {e.value:+.0f} [{e.low:+.0f}, {e.high:+.0f}]" for column, e in estimates.items()]
            lines.append(f"- {name}: {', '.join(texts)} ({len(pairs)} seeds)")
    if not lines:
        return ""
    title = f'Less "{CONTROL}", paired by seed, with 95 % intervals; without the seeds that settings were tried on:'
    return "\n".join([title, "", *lines])


def best_first(runs: pd.DataFrame) -> list[str]:
    """Settings in the order of what their best particles return at the end."""
    return list(runs.groupby("algorithm")["best at the end"].mean().sort_values(ascending=False).index)


def by_task(runs: pd.DataFrame, column: str) -> str:
    """The different values of a column, by task and by kind of particles where these differ."""
    texts = {}
    for environment, of_task in runs.groupby("environment", sort=False):
        kinds = of_task.groupby(kind_of(of_task.algorithm), sort=False)
        texts[_short(environment)] = _joined({kind: _values(group[column]) for kind, group in kinds})
    return _joined(texts, "; ")


def _joined(texts: dict[str, str], separator: str = ", ") -> str:
    """Texts after what they are of, or the one that all are."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return separator.join(f"{name} {text}" for name, text in texts.items())


def _values(column: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in sorted(column.unique()))


def _short(environment: str) -> str:
    return environment.removeprefix("Rllab").removesuffix("-v0")


def section(folder: Path) -> str:
    """Text and tables; the empty text while there are no numbers."""
    parts = []
    for name, title in TITLES.items():
        path = folder / f"svpg_{name}.csv"
        if not path.exists():
            continue
        runs = summary(read_runs(path))
        table = table_of_tasks(runs) if name == "table" else table_of_settings(runs)
        if name == "ablations":
            table = table.loc[best_first(runs)]
        notes = _notes(runs) if name == "table" else ""
        command = f"`python -m sb3_wng.benchmarks.svpg_study {name}`, with `--share` for a share of the published iterations"
        parts.append(f"### {title}\n\n{command}, here: {by_task(runs, 'share')}.{notes}\n\n{markdown(table)}")
        if name == "ablations":
            parts += filter(None, [differences(runs)])
        parts.append(f"![{title}](svpg_{name}.png)")
    if (path := folder / "svpg_visitation.csv").exists():
        parts.append(
            "### Where the best particles go\n\n`python -m sb3_wng.benchmarks.svpg_study visitation --models FOLDER`, with "
            "what `table --models FOLDER` has saved: positions and angles of the best four particles (of one agent, if joint) "
            f"on CartPoleSwingUp, in a grid of {N_BINS} by {N_BINS} cells; 100 episodes each.\n\n"
            f"{markdown(table_of_visits(pd.read_csv(path)))}\n\n"
            "![Share of the time in each cell, logarithmic](svpg_visitation.png)"
        )
    return "## SVPG\n\n" + "\n\n".join(parts) + "\n" if parts else ""


def _notes(runs: pd.DataFrame) -> str:
    """Which seeds Table 1 has, and what its row is that the paper has not."""
    control = runs[runs.algorithm.str.endswith("radial")]
    text = f" Seeds: {by_task(runs[~runs.index.isin(control.index)], 'seed')}."
    if control.empty:
        return text
    return f"{text} *Radial* (seeds {by_task(control, 'seed')}), not in the paper: SVPG's push away from the mean, alone."


def draw(folder: Path) -> None:
    """A figure beside every file of the study."""
    for name in TITLES:
        path = folder / f"svpg_{name}.csv"
        if path.exists():
            rows = read_runs(path)
            figure = settings_figure(rows) if name == "ablations" else curves_figure(rows)
            save(figure, path.with_suffix(".png"), path)
    if (folder / "svpg_visitation.csv").exists():
        _draw_visitation(folder / "svpg_visitation.csv")


def curves_figure(rows: pd.DataFrame) -> Figure:
    """A row of panels for each task: learning curves, and the particles' sorted returns at the end."""
    tasks = rows.groupby("environment", sort=False)
    figure, panels = plt.subplots(len(tasks), 2, figsize=(11, 4.2 * len(tasks)), layout="constrained", squeeze=False)
    labels = list(rows.algorithm.unique())
    for (environment, of_task), (left, right) in zip(tasks, panels, strict=True):
        _draw_pair(left, right, of_task, labels)
        left.set_title(_short(environment))
    handles = {label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[label] for label in labels], labels, loc="outside right upper", fontsize="small")
    return figure


def settings_figure(rows: pd.DataFrame) -> Figure:
    """Too many settings for curves: each one's returns at the end, and curves of the few that the others vary."""
    runs = summary(rows)
    order = best_first(runs)[::-1]
    figure = plt.figure(figsize=(13, max(6.0, 0.3 * len(order) + 1)), layout="constrained")
    panels = figure.subplot_mosaic([["settings", "curves"], ["settings", "particles"]], width_ratios=[1.2, 1])
    heights = [order.index(name) for name in runs.algorithm]
    for column, marker, color in (("best at the end", "o", "C0"), ("mean at the end", "|", "C7")):
        label = f"{column.partition(' ')[0]} of the particles, one mark per seed"
        panels["settings"].plot(runs[column], heights, marker, color=color, alpha=0.8, label=label)
    panels["settings"].set(yticks=range(len(order)), yticklabels=order, xlabel="return at the end")
    panels["settings"].grid(alpha=0.3)
    panels["settings"].legend(loc="lower right", fontsize="small")
    _draw_pair(panels["curves"], panels["particles"], rows[rows.algorithm.isin(MODES)], list(MODES))
    panels["particles"].legend(fontsize="small")
    return figure


def _draw_pair(left: Axes, right: Axes, rows: pd.DataFrame, labels: Sequence[str]) -> None:
    """Learning curves and sorted particles of one task."""
    for label, group in rows.groupby("algorithm", sort=False):
        style = {"color": f"C{labels.index(label)}", "label": label}
        _curve(left, group, style)
        _bars(right, group, style)
    left.set(xlabel="million env steps of all particles", ylabel="return of the best particle")
    right.locator_params(axis="x", integer=True)
    right.set(xlabel="rank of the particle", ylabel="return at the end", title="Every particle, sorted")


def _curve(axes: Axes, group: pd.DataFrame, style: dict[str, Any]) -> None:
    by_step = group.groupby("timesteps").return_best
    mean, low, high = by_step.mean(), by_step.min(), by_step.max()
    millions = mean.index / 1e6
    axes.plot(millions, mean, **style)
    axes.fill_between(millions, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _bars(axes: Axes, group: pd.DataFrame, style: dict[str, Any]) -> None:
    last = group[group.iteration == group.groupby("seed").iteration.transform("max")]
    sorted_returns = [np.sort(np.array(str(text).split(), dtype=float))[::-1] for text in last.particle_returns]
    heights = np.mean(sorted_returns, axis=0)
    axes.plot(np.arange(1, len(heights) + 1), heights, marker="." if len(heights) > 1 else "s", **style)


def table_of_visits(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method: share of the time upright, and over how many cells the visits are spread."""
    records = {}
    angles = (rows.angle + 0.5) * 2 * np.pi / N_BINS - np.pi
    for name, group in rows.assign(is_upright=np.abs(angles) < UPRIGHT).groupby("algorithm", sort=False):
        cells = np.exp(-(group.share * np.log(group.share)).sum() / group.share.sum())
        upright = group.share[group.is_upright].sum() / group.share.sum()
        records[name] = {"upright": f"{upright:.0%}", "cells": f"{cells:.0f}", "seeds": str(group.seeds.iloc[0])}
    columns = {"upright": f"within {UPRIGHT} rad of upright", "cells": "cells (exp of the entropy)", "seeds": "seeds"}
    return pd.DataFrame.from_dict(records, orient="index").rename(columns=columns)


def _draw_visitation(path: Path) -> None:
    """Where the best four particles of each method go: share of the time per cell, logarithmic."""
    rows = pd.read_csv(path)
    names = list(rows.algorithm.unique())
    figure, panels = plt.subplots(1, len(names), figsize=(3.1 * len(names), 3.2), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        group = rows[rows.algorithm == name]
        density = np.zeros((N_BINS, N_BINS))
        np.add.at(density, (group.angle, group.position), group.share)
        shown = np.log10(np.maximum(density, 1e-6))
        image = axes.imshow(shown, vmin=-6, vmax=-1, origin="lower", extent=(-3, 3, -np.pi, np.pi), aspect="auto")
        axes.set(title=name, xlabel="position (m)", ylabel="angle (rad, 0 is upright)")
    figure.colorbar(image, ax=panels, label="log10 of the share of the time")
    save(figure, path.with_suffix(".png"), path)
