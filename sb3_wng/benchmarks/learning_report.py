"""Tables, claims and figures of the learning experiments, from their CSV files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_wng.benchmarks import figures, training_cost
from sb3_wng.benchmarks.experiments import POLICY_GRADIENTS
from sb3_wng.benchmarks.markdown import markdown, number
from sb3_wng.benchmarks.models import Experiment
from sb3_wng.benchmarks.runner import finished
from sb3_wng.benchmarks.scores import (
    CONSTANTS,
    MIN_PAIRS,
    Array,
    Estimate,
    aggregated_tasks,
    final_returns,
    interquartile_mean,
    mean,
    mean_returns,
    minutes_to,
    paired_differences,
    read_constants,
    read_runs,
    samples,
    scores,
)
from sb3_wng.benchmarks.training_cost import seconds_per_step

THRESHOLD = 0.5  # score by which methods' speed is compared, as Fig. 5 of arXiv 2010.05380 compares return per minute


def section(experiment: Experiment, folder: Path) -> str:
    """Tables of one experiment, a sentence while no cell has all its seeds, nothing while there is no file of its runs."""
    wanted = itertools.product(experiment.methods, experiment.environments, map(str, experiment.seeds))
    done = finished(folder / f"{experiment.name}.csv") & set(wanted)
    if not done:
        return ""
    title, command = experiment.name.replace("_", " ").capitalize(), f"python -m sb3_wng.benchmarks run {experiment.name}"
    runs = read_runs(folder, experiment)
    if runs.empty:
        n_runs = len(experiment.methods) * len(experiment.environments) * len(experiment.seeds)
        return f"## {title}\n\n`{command}`: {len(done)} of {n_runs} runs are finished, no cell has all its seeds yet.\n"
    steps = ", ".join(f"{figures.short(env)} {timesteps:,}" for env, timesteps in experiment.environments.items())
    parts = [
        f"## {title}",
        f"`{command}`: {experiment.description}\n\nSteps: {steps}. Seeds "
        f"{', '.join(map(str, experiment.seeds))}. {_measure(experiment, runs, folder)}",
        *comparison_parts(experiment, runs, folder),
        *(f"![{caption}]({name}.png)" for name, caption in experiment_figures(experiment, runs).items()),
        f"Mean return at the end ({_spread(experiment)}):",
        markdown(returns_table(experiment, final_returns(runs, experiment))),
    ]
    if experiment.optimum:
        parts += [
            "Median distance from the best return after a quarter, half and all of the steps:",
            error_table(experiment, runs),
        ]
    if experiment.baselines or experiment.saturating:
        parts += [
            "Area under the learning curve (mean return over all of training):",
            markdown(returns_table(experiment, mean_returns(runs, experiment))),
        ]
    if experiment.baselines:
        parts += score_parts(experiment, scores(runs, experiment, read_constants(folder)))
        by_area = replace(experiment, saturating=tuple(experiment.environments))
        others = [name for name in experiment.environments if name not in experiment.saturating]
        areas = scores(runs, by_area, read_constants(folder))
        differences, claims = aggregate(experiment, areas)
        parts.append(
            "The same of areas under the curve, for how fast methods learn: over the same tasks (added after the runs were "
            "seen), and on tasks whose score above is of the final return:"
        )
        parts += claim_parts(claims, claims_of_tasks(experiment, areas, others), differences)
        parts += [
            f"Median minutes until returns reach a score of {THRESHOLD}, and in how many runs they do (*never*: in half of "
            "them or fewer):",
            markdown(minutes_table(experiment, minutes_to(THRESHOLD, runs, experiment, read_constants(folder)))),
        ]
    for published in experiment.published:
        parts += [f"Published, {published.source}:", published_table(experiment, published.returns)]
    return "\n\n".join(parts) + "\n"


def is_as_complete_as_any(table: pd.DataFrame, task: str) -> bool:
    """Whether no other task has been finished by more methods."""
    counts = table.columns.get_level_values("environment").value_counts()
    return bool(counts[task] == counts.max())


def summary(folder: Path, methods: Sequence[str] | None = None) -> str:
    """:func:`comparison` of policy gradients."""
    return comparison(POLICY_GRADIENTS, folder, methods)


def comparison_parts(experiment: Experiment, runs: pd.DataFrame, folder: Path) -> list[str]:
    """:func:`comparison` with a word of what it is, where there are scores over tasks."""
    by_end = scores(runs, experiment, read_constants(folder)) if experiment.baselines else pd.DataFrame()
    if by_end.empty or not aggregated_tasks(by_end, experiment):
        return []
    return [
        "In short, best first: mean return at the end, and interquartile means of scores (0: random actions, 1: the reference)"
        " at the end and by the area under the learning curve. Which differences are clear is said below.",
        comparison(experiment, folder),
    ]


def comparison(experiment: Experiment, folder: Path, methods: Sequence[str] | None = None) -> str:
    """Mean final returns, and interquartile means of scores at the end and by area, best first.

    :param methods: those that are shown; ``None``: all
    """
    runs, constants = read_runs(folder, experiment), read_constants(folder)
    final = final_returns(runs, experiment).groupby(level=["algorithm", "environment"]).mean()
    by_end = scores(runs, experiment, constants)
    by_area = scores(runs, replace(experiment, saturating=tuple(experiment.environments)), constants)
    tasks = [task for task in aggregated_tasks(by_end, experiment) if is_as_complete_as_any(by_end, task)]
    at_end, areas = (samples(table, experiment.methods, tasks) for table in (by_end, by_area))
    columns = {figures.short(task): [number(final[name, task]) for name in at_end] for task in tasks}
    estimates = {name: interquartile_mean(values).value for name, values in at_end.items()}
    columns["score"] = [f"{value:.2f}" for value in estimates.values()]
    columns["score by area"] = [f"{interquartile_mean(areas[name]).value:.2f}" for name in at_end]
    shown = [name for name in at_end if methods is None or name in methods]
    return markdown(pd.DataFrame(columns, index=list(at_end)).loc[sorted(shown, key=estimates.__getitem__, reverse=True)])


def _measure(experiment: Experiment, runs: pd.DataFrame, folder: Path) -> str:
    if len(seconds_per_step(folder, experiment.name)):
        n_steps = training_cost.TURNS * training_cost.STEPS
        minutes = (
            "of the processor, in one thread: steps, times what a step costs, which all methods were measured for in turn "
            f"(`python -m sb3_wng.benchmarks.training_cost`, first {n_steps:,} steps), as runs were made on a machine whose "
            "speed varied"
        )
    elif runs["cpu_seconds"].isna().any():
        minutes = "wall-clock on a machine shared with other work"
    else:
        minutes = "of the processor, in one thread, on a machine whose speed varied from run to run"
    return f"Returns at the end are means of the training episodes in the last 10 % of the steps. Minutes are {minutes}."


def _spread(experiment: Experiment) -> str:
    return "each seed in parentheses" if len(experiment.seeds) < MIN_PAIRS else "95 % intervals over seeds"


def cell(values: pd.Series) -> str:
    """Mean, and either all seeds or an interval."""
    if len(values) < MIN_PAIRS:
        return f"{number(values.mean())} ({', '.join(map(number, values))})"
    estimate = mean([values.to_numpy()])
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def returns_table(experiment: Experiment, values: pd.Series) -> pd.DataFrame:
    """All methods by all environments, empty where unfinished."""
    groups = [] if values.empty else values.groupby(level=["algorithm", "environment"])
    cells = {key: cell(group) for key, group in groups}
    columns = {
        figures.short(env): [cells.get((name, env), "") for name in experiment.methods] for env in experiment.environments
    }
    return pd.DataFrame(columns, index=list(experiment.methods))


def minutes_table(experiment: Experiment, minutes: pd.Series) -> pd.DataFrame:
    """Median over seeds, and how many of them are finite, for all methods by all environments."""
    table = pd.DataFrame("", index=list(experiment.methods), columns=list(experiment.environments))
    groups = [] if minutes.empty else minutes.groupby(level=["algorithm", "environment"])
    for (method, environment), values in groups:
        median = number(values.median()) if np.isfinite(values.median()) else "never"
        table.loc[method, environment] = f"{median} ({np.isfinite(values).sum()}/{len(values)})"
    return table.rename(columns=figures.short)


def error_table(experiment: Experiment, runs: pd.DataFrame) -> str:
    columns = {}
    for environment, optimum in experiment.optimum.items():
        rows = runs[runs.environment == environment]
        for share in (0.25, 0.5, 1.0):
            end = share * experiment.environments[environment]
            window = rows[(rows.timesteps <= end) & (rows.timesteps > end - 0.1 * experiment.environments[environment])]
            errors = optimum - window.groupby(["algorithm", "seed"])["return"].mean()
            columns[f"{figures.short(environment)}, {share:.0%}"] = errors.groupby("algorithm").median().map("{:.1e}".format)
    return markdown(pd.DataFrame(columns, index=list(experiment.methods)).fillna(""))


def score_parts(experiment: Experiment, table: pd.DataFrame) -> list[str]:
    """Aggregate scores and paired differences over tasks, and the claims that they and single tasks allow."""
    saturating = "".join(f", of the area under the curve for {figures.short(name)}" for name in experiment.saturating)
    parts = [
        f"Scores are (return - random) / (reference - random), both from [{CONSTANTS}]({CONSTANTS}){saturating}. "
        "Intervals are of 95 %: of scores from a bootstrap, of differences Student's, not corrected for the number of pairs."
    ]
    differences, claims = aggregate(experiment, table)
    return [
        *parts,
        f"Differences of scores, paired by seed, with {MIN_PAIRS} seeds or more, whose interval excludes zero, among what is "
        "finished:",
        *claim_parts(claims, claims_of_tasks(experiment, table, experiment.environments), differences),
    ]


def aggregate(experiment: Experiment, table: pd.DataFrame) -> tuple[str, list[str]]:
    """Scores over all finished tasks and their differences from the baselines, if there are any, and the claims they allow."""
    environments = aggregated_tasks(table, experiment)
    complete = samples(table, experiment.methods, environments)
    if not complete:
        return "", []
    columns = ["score", *(f"less {name}" for name in experiment.baselines)]
    aggregates = pd.DataFrame("", index=list(experiment.methods), columns=columns)
    for method, values in complete.items():
        aggregates.loc[method, "score"] = interquartile_mean(values).text()
    for method, baseline, estimate in paired_estimates(experiment, complete):
        aggregates.loc[method, f"less {baseline}"] = estimate.text()
    tasks = listed(map(figures.short, environments))
    said = (
        f"Interquartile mean over {tasks} and all seeds, and mean differences from the baselines paired by task and seed, "
        f"stratified by task:\n\n{markdown(aggregates)}"
    )
    prefix = "All tasks" if len(environments) == len(experiment.environments) > 1 else tasks
    return said, [f"{prefix}: {claim}" for claim in clear_differences(experiment, complete)]


def listed(names: Iterable[str]) -> str:
    """``a, b and c``"""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def claims_of_tasks(experiment: Experiment, table: pd.DataFrame, environments: Iterable[str]) -> list[str]:
    """What may be said of single tasks, by a table of scores."""
    claims = []
    for environment in environments:
        of_task = samples(table, experiment.methods, [environment])
        claims += [f"{figures.short(environment)}: {claim}" for claim in clear_differences(experiment, of_task)]
    return claims


def claim_parts(of_all: Sequence[str], of_tasks: Sequence[str], differences: str) -> list[str]:
    """What may be said over all tasks, and what readers unfold: the same of single ones, and all differences."""
    folded = {"On single tasks": bullets(of_tasks) if of_tasks else "", "All differences over tasks": differences}
    return [
        *([bullets(of_all)] if of_all or not of_tasks else []),
        *(f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in folded.items() if text),
    ]


def bullets(claims: Sequence[str]) -> str:
    return "\n".join(f"- {claim}" for claim in claims or ["none"])


def paired_estimates(experiment: Experiment, values: Mapping[str, list[Array]]) -> Iterator[tuple[str, str, Estimate]]:
    """Mean differences of methods from baselines, both by name, where both are there."""
    for method, baseline in itertools.product(experiment.methods, experiment.baselines):
        if method != baseline and {method, baseline} <= values.keys():
            yield method, baseline, mean(paired_differences(values[method], values[baseline]))


def clear_differences(experiment: Experiment, values: Mapping[str, list[Array]]) -> Iterator[str]:
    """A clause for each method that is clearly better or worse than a baseline; two baselines are compared once."""
    clear: dict[tuple[str, str], list[str]] = {}
    compared: set[frozenset[str]] = set()
    for method, baseline, estimate in paired_estimates(experiment, values):
        is_new = {method, baseline} not in compared
        compared.add(frozenset({method, baseline}))
        if is_new and estimate.is_clear:
            word = "better" if estimate.value > 0 else "worse"
            clear.setdefault((method, word), []).append(f"{baseline} ({estimate.text()})")
    for (method, word), others in clear.items():
        yield f"{method} is {word} than {', '.join(others)}"


def published_table(experiment: Experiment, returns: object) -> str:
    table = pd.DataFrame(returns).T.reindex(columns=list(experiment.environments)).map(number)
    return markdown(table.rename(columns=figures.short))


def experiment_figures(experiment: Experiment, runs: pd.DataFrame) -> dict[str, str]:
    """Names and captions of the figures that an experiment's finished cells allow."""
    if runs.empty:
        return {}
    chosen = {experiment.name: "Learning curves against steps and time: mean (median of distances) and quartiles over seeds"}
    cells = runs.pivot_table("return", "seed", ["algorithm", "environment"])
    if experiment.baselines and aggregated_tasks(cells, experiment):
        chosen[f"{experiment.name}_scores"] = "Interquartile means of scores and performance profiles"
    if any(figures.SETTING.fullmatch(name) for name in experiment.methods):
        chosen[f"{experiment.name}_sensitivity"] = "Final performance by rate and by radius: median and quartiles over seeds"
    return chosen


def draw(experiment: Experiment, folder: Path) -> None:
    runs, data = read_runs(folder, experiment), [folder / f"{experiment.name}.csv"]
    if len(seconds_per_step(folder, experiment.name)):
        data.append(folder / training_cost.FILE)
    for name in experiment_figures(experiment, runs):
        if name.endswith("_scores"):
            figure = figures.aggregate_figure(experiment, scores(runs, experiment, read_constants(folder)))
        elif name.endswith("_sensitivity"):
            figure = figures.sensitivity_figure(experiment, runs)
        else:
            figure = figures.learning_figure(experiment, runs)
        figures.save(figure, folder / f"{name}.png", *data)
