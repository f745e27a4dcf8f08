"""What training costs, all methods of an experiment in turn in one process: ``python -m sb3_wng.benchmarks.training_cost``.

An experiment's runs are made on days and beside other work that differ, so that their own clocks do not compare. Here every
method goes on for a few thousand steps when it is its turn, so that a noisy machine disturbs all of them alike. The report
takes the minutes of its tables and curves from this. An environment that the output file has is not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch

from sb3_wng.benchmarks.experiments import EXPERIMENTS
from sb3_wng.benchmarks.models import Experiment, make_model
from sb3_wng.benchmarks.records import RESULTS, append_records, read_records

FILE = "training_cost.csv"
SEED = 90  # that no experiment reports
STEPS, TURNS = 16_384, 3


def measure(experiment: Experiment, environment: str, steps: int = STEPS, turns: int = TURNS) -> list[dict[str, object]]:
    """Processor seconds of every method in every turn, in one thread.

    :param steps: of a turn, rounded up to whole rollouts
    """
    torch.set_num_threads(1)
    models = {name: make_model(experiment, name, environment, SEED) for name in experiment.methods}
    records: list[dict[str, object]] = []
    for turn in range(turns):
        for name, model in models.items():
            before, start = model.num_timesteps, time.process_time()
            model.learn(steps, reset_num_timesteps=False)
            spent = time.process_time() - start
            key = {"experiment": experiment.name, "algorithm": name, "environment": environment, "turn": turn}
            records.append({**key, "timesteps": model.num_timesteps - before, "cpu_seconds": f"{spent:.3f}"})
    return records


def seconds_per_step(folder: Path, experiment: str) -> pd.Series:
    """By algorithm and environment, over all turns; empty if nothing has been measured."""
    rows = pd.DataFrame(read_records(folder / FILE) or {"experiment": []})
    rows = rows[rows.experiment == experiment]
    if rows.empty:
        return pd.Series(dtype=float)
    numbers = rows.astype({"timesteps": int, "cpu_seconds": float})
    sums = numbers.groupby(["algorithm", "environment"])[["timesteps", "cpu_seconds"]].sum()
    return sums.cpu_seconds / sums.timesteps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiment", choices=list(EXPERIMENTS), default="policy_gradients")
    parser.add_argument("--environments", nargs="+", metavar="ID", help="(default: all of the experiment's)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of CSV files (default: %(default)s)")
    arguments = parser.parse_args()
    experiment, path = EXPERIMENTS[arguments.experiment], arguments.results / FILE
    done = {row["environment"] for row in read_records(path) if row["experiment"] == experiment.name}
    for environment in arguments.environments or experiment.environments:
        if environment not in done:
            append_records(path, measure(experiment, environment))
    for (name, environment), seconds in seconds_per_step(arguments.results, experiment.name).items():
        print(f"{environment:36} {name:22} {1e3 * seconds:7.3f} s per 1000 steps")


if __name__ == "__main__":
    main()
