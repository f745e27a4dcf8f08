"""Figures of the benchmark page, each drawn from CSV files only."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sb3_wng.benchmarks.gaussian_toy import METHODS, RATE
from sb3_wng.benchmarks.models import Experiment
from sb3_wng.benchmarks.scores import aggregated_tasks, final_returns, interquartile_mean, performance_profile, samples

DPI = 110
# Names of methods that differ in one number
SETTING = re.compile(r"(?P<family>.+?),? (?P<kind>rate|radius) (?P<value>[\d.e-]+)")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
TOY_FLOOR = 1e-20  # smaller losses are drawn here


def digest(*paths: Path) -> str:
    """Fingerprint of the data that a figure is drawn from; the figure carries it, so that a stale one is noticed."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def save(figure: Figure, path: Path, *data: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None, "Description": digest(*data)})
    plt.close(figure)


def styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """A colour for each algorithm; methods that only differ in a setting share it and differ in their lines."""
    families: dict[str, list[str]] = {}
    for method in methods:
        match, algorithm = SETTING.fullmatch(method), re.match(r"[A-Z]{2,}", method)
        family = f"{match['family']} {match['kind']}" if match else algorithm[0] if algorithm else method
        families.setdefault(family, []).append(method)
    return {
        method: {"color": f"C{index % 10}", "linestyle": LINES[rank % len(LINES)]}
        for index, members in enumerate(families.values())
        for rank, method in enumerate(members)
    }


def short(environment: str) -> str:
    """Name of a task without what all of them have."""
    return environment.removesuffix("-v0").removesuffix("BulletEnv")


def learning_figure(experiment: Experiment, runs: pd.DataFrame) -> Figure:
    """Learning curves against steps and against the clock; distances from a known optimum on a logarithmic axis.

    Environments without runs have no panels.
    """
    environments = [name for name in experiment.environments if name in set(runs.environment)]
    style = styles(list(experiment.methods))
    width = max(5 * len(environments), 8)
    n_columns = max(1, int(width / (0.8 + 0.09 * max(map(len, experiment.methods)))))  # inches: handle, gap and letters
    height = 7.5 + 0.2 * -(-len(experiment.methods) // n_columns)
    figure, panels = plt.subplots(2, len(environments), figsize=(width, height), layout="constrained", squeeze=False)
    handles: dict[str, Any] = {}
    for environment, column in zip(environments, panels.T, strict=True):
        optimum = experiment.optimum.get(environment)
        for method, rows in runs[runs.environment == environment].groupby("algorithm", sort=False):
            bins = rows.assign(error=(optimum - rows["return"]) if optimum is not None else rows["return"]).groupby(
                "timesteps"
            )
            values, minutes = bins["error"], bins["seconds"].mean() / 60
            center = values.mean() if optimum is None else values.median()
            for axes, x in ((column[0], center.index / 1000), (column[1], minutes)):
                (handles[method],) = axes.plot(x, center, **style[method])
                axes.fill_between(
                    x, values.quantile(0.25), values.quantile(0.75), color=style[method]["color"], alpha=0.1, lw=0
                )
        label = "return of training episodes" if optimum is None else "distance from the best return"
        for axes, unit in zip(column, ("environment steps, thousands", "minutes"), strict=True):
            axes.set(title=short(environment), xlabel=unit, ylabel=label, yscale="linear" if optimum is None else "log")
            axes.grid(alpha=0.3)
    ordered = [method for method in experiment.methods if method in handles]
    lines = [handles[method] for method in ordered]
    figure.legend(lines, ordered, loc="outside lower center", ncols=n_columns, frameon=False)
    return figure


def aggregate_figure(experiment: Experiment, table: pd.DataFrame) -> Figure:
    """Interquartile means with their intervals, and performance profiles."""
    style = styles(list(experiment.methods))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    finished = samples(table, experiment.methods, aggregated_tasks(table, experiment))
    thresholds = np.linspace(0, 1.1, 111)
    for position, (method, values) in enumerate(finished.items()):
        estimate, color = interquartile_mean(values), style[method]["color"]
        left.barh(position, estimate.high - estimate.low, left=estimate.low, color=color, alpha=0.35)
        left.plot([estimate.value] * 2, [position - 0.4, position + 0.4], color=color)
        right.plot(thresholds, performance_profile(np.concatenate(values), thresholds), **style[method], label=method)
    left.set(yticks=range(len(finished)), yticklabels=list(finished), xlabel="score: interquartile mean, 95 % interval")
    left.invert_yaxis()
    left.use_sticky_edges = False  # the lowest bar would begin at the frame
    left.autoscale_view()
    right.set(xlabel="score", ylabel="share of runs with a higher score")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def sensitivity_figure(experiment: Experiment, runs: pd.DataFrame) -> Figure:
    """Final performance against the one setting in which the methods of a family differ.

    Environments without runs have no panels.
    """
    environments = [name for name in experiment.environments if name in set(runs.environment)]
    figure, panels = plt.subplots(
        2, len(environments), figsize=(5 * len(environments), 7.5), layout="constrained", squeeze=False
    )
    final = final_returns(runs, experiment)
    style = styles(list(experiment.methods))
    colors = {match.group("kind", "family"): style[name]["color"] for name in style if (match := SETTING.fullmatch(name))}
    for environment, column in zip(environments, panels.T, strict=True):
        optimum = experiment.optimum.get(environment)
        families: dict[tuple[str, str], list[tuple[float, pd.Series]]] = {}
        for method in experiment.methods:
            match = SETTING.fullmatch(method)
            if match and (method, environment) in final.index.droplevel("seed"):
                values = final[method, environment]
                values = values if optimum is None else optimum - values
                families.setdefault((match["kind"], match["family"]), []).append((float(match["value"]), values))
        for (kind, family), points in families.items():
            axes = column[0] if kind == "rate" else column[1]
            x = [setting for setting, _ in points]
            low, center, high = (np.array([values.quantile(q) for _, values in points]) for q in (0.25, 0.5, 0.75))
            spread = [center - low, high - center]
            axes.errorbar(x, center, yerr=spread, marker="o", capsize=3, color=colors[kind, family], label=family)
        for axes, label in zip(column, ("rate", "radius (KL)"), strict=True):
            axes.set(title=short(environment), xlabel=label, xscale="log", yscale="linear" if optimum is None else "log")
            axes.set_ylabel("final return" if optimum is None else "final distance from the best return")
            settings = sorted({x for (kind, _), points in families.items() if label.startswith(kind) for x, _ in points})
            axes.set_xticks(
                settings, [f"{x:g}" for x in settings], rotation=60, fontsize="small"
            )  # decades are too few or many
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
            if axes.has_data():
                axes.legend(frameon=False)
    return figure


# --- The Gaussian toy ---


def toy_figure(rows: pd.DataFrame) -> Figure:
    """The panels of the paper's Fig. 1: curves and paths, and sweeps of rate and penalty, in both parameterisations."""
    figure, panels = plt.subplots(4, 2, figsize=(10, 15), layout="constrained")
    # thinner from method to method, so that curves in the same place are all seen
    styles = {method.name: {"color": f"C{index}", "linewidth": 5 - 0.8 * index} for index, method in enumerate(METHODS)}
    start = rows[rows.iteration == 0].iloc[0]
    for parameterization, (curves, paths, rates, penalties) in zip(("log", "diagonal"), panels.T, strict=True):
        chosen = rows[rows.parameterization == parameterization]
        for method, style in styles.items():
            group = chosen[chosen.algorithm == method]
            curve = group[group.panel == "curve"]
            curves.plot(curve.iteration.clip(lower=0.5), curve.loss.clip(lower=TOY_FLOOR), **style, label=method)
            paths.plot(curve.first_std, curve.first_mean, **style)
            _sweep(rates, group[group.panel == "rate"], "rate", style)
            _sweep(penalties, group[group.panel == "penalty"], "penalty", style)
        form = "variance = exp(2v)" if parameterization == "log" else "variance = v"
        curves.set(title=f"loss, {form}", xlabel="iteration", xscale="log", yscale="log", ylabel="loss per dimension")
        paths.set(title=f"path of the first dimension, {form}", xlabel="spread", ylabel="mean")
        paths.set(xlim=(-0.05, 1.1 * start.first_std), ylim=(-0.4 * start.first_mean, 1.1 * start.first_mean))
        rates.set(title=f"loss at the end, {form}", xlabel="rate", xscale="log", yscale="log")
        penalties.set(title=f"loss at the end, {form}", xlabel=f"penalty (rate {RATE})", xscale="log", yscale="log")
        for axes in (curves, rates, penalties):
            axes.set_ylim(TOY_FLOOR / 3, 10)
        for axes in (curves, paths, rates, penalties):
            axes.grid(alpha=0.3)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _sweep(axes: Axes, rows: pd.DataFrame, column: str, style: dict[str, Any]) -> None:
    if len(rows):
        axes.plot(rows[column], rows.loss.clip(lower=TOY_FLOOR), **style, marker="o", markersize=2 + 2 * style["linewidth"])
