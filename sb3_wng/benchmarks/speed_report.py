"""Tables of how fast populations and evolution strategies collect experience, from their CSV files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sb3_wng.benchmarks.markdown import markdown, number

POPULATION_CSV, EVOLUTION_CSV = "svpg_speed.csv", "evolution_speed.csv"
BARE = "environment alone"

POPULATION = """## Speed of a population

`python -m sb3_wng.benchmarks.svpg_speed --output docs/benchmarks/{csv}`: CartPoleSwingUp, batched, one process of one thread;
env steps per CPU second, and what Stein's direction costs. Ratios are to the first row.

{table}
"""
EVOLUTION = """## Speed of evolution strategies

`python -m sb3_wng.benchmarks.evolution_speed --output docs/benchmarks/{csv}`: env steps per second, medians, and
medians of the ratios within each, to workers that only step the environment and to SB3-Contrib's ARS.

{table}
"""


def population_section(folder: Path) -> str:
    """The table, as Markdown; empty without a measurement."""
    path = folder / POPULATION_CSV
    if not path.exists():
        return ""
    speed = pd.read_csv(path).fillna({"unit": ""})
    is_rate = speed.unit == "steps/s"
    ratio = (speed.value / speed.value.iloc[0]).map("{:.2f}".format).where(is_rate, "")
    values = speed.value.map("{:,.0f}".format).where(is_rate, speed.value.map("{:.3g}".format)) + " " + speed.unit
    table = pd.DataFrame({"value": values.str.strip().to_numpy(), "ratio": ratio.to_numpy()}, index=speed.quantity)
    return POPULATION.format(csv=POPULATION_CSV, table=markdown(table))


def workers_table(folder: Path) -> str:
    """The table of the guide to workers: how much of the bare environment's speed is left, and how ARS compares."""
    speed = pd.read_csv(folder / EVOLUTION_CSV)
    medians = speed.groupby(["subject", "quantity"])["value"].median().unstack("quantity")
    names = {"ES, loky": "ES, local processes", "ES, ray": "ES, Ray"}
    columns = {
        "of the bare environment's": medians[f"env steps per s / {BARE}"].map("{:.2f}".format),
        "of SB3-Contrib's ARS with `AsyncEval`": medians["env steps per s / ARS"].map("{:.1f} times".format),
    }
    return markdown(pd.DataFrame(columns).loc[list(names)].rename(index=names))


def evolution_section(folder: Path) -> str:
    """The table, as Markdown; empty without a measurement."""
    path = folder / EVOLUTION_CSV
    if not path.exists():
        return ""
    speed = pd.read_csv(path)
    medians = speed.groupby(["environment", "n_jobs", "subject", "quantity"], sort=False)["value"].median().unstack("quantity")
    columns = {
        "steps/s": medians["env steps per s"].map(number),
        "/ environment alone": medians[f"env steps per s / {BARE}"].map("{:.2f}".format),
        "/ ARS": medians["env steps per s / ARS"].map("{:.2f}".format),
    }
    names = [f"{environment}, {n_jobs} jobs: {subject}" for environment, n_jobs, subject in medians.index]
    table = pd.DataFrame(columns).set_axis(names)
    return EVOLUTION.format(csv=EVOLUTION_CSV, table=markdown(table))
