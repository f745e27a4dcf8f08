"""What a behaviour penalty adds to an update: ``python -m sb3_wng.benchmarks.penalty_cost [--output FILE]``.

BGPG on HopperBullet, 8 environments of 256 steps, one torch thread, its default 10 epochs of minibatches of 64. Variants
take turns on rollouts of their own, so that a noisy machine disturbs all of them alike; medians of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import BGPG
from sb3_wng.benchmarks.markdown import markdown
from sb3_wng.benchmarks.records import append_records

CSV = "penalty_cost.csv"
N_ENVS, N_STEPS = 8, 256
WITHOUT = "none"
VARIANTS: dict[str, dict[str, Any]] = {
    WITHOUT: {"wasserstein_coef": 0.0},
    "closed_form": {},
    "kl": {"distance": "kl"},
    "sinkhorn, actions": {"distance": "sinkhorn"},
    "dual, actions": {"distance": "dual"},
    "sinkhorn, final_state": {"distance": "sinkhorn", "embedding": "final_state"},
    "dual, final_state": {"distance": "dual", "embedding": "final_state"},
}

SECTION = """## What a behaviour penalty costs

`python -m sb3_wng.benchmarks.penalty_cost --output docs/benchmarks/{csv}`: BGPG on HopperBullet, {n_envs} environments x
{n_steps} steps, 10 epochs of minibatches of 64, actor and critic, one thread; median CPU times of an update. Samples of single
actions are compared in every minibatch, trajectories once per rollout.

{table}
"""


def measure(env_id: str, repeats: int, n_steps: int = N_STEPS) -> list[dict[str, object]]:
    """One record per variant: median milliseconds of ``train()``."""
    models = {
        name: BGPG(
            "MlpPolicy",
            VecNormalize(make_vec_env(env_id, N_ENVS, seed=0)),
            n_steps=n_steps,
            seed=0,
            device="cpu",
            **settings,
        )
        for name, settings in VARIANTS.items()
    }
    for model in models.values():
        model.learn(2 * n_steps * N_ENVS)  # trajectories are compared with the rollout before
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            start = time.process_time()
            model.train()
            times[name].append(time.process_time() - start)
    return [
        {"experiment": "penalty", "subject": name, "quantity": "update ms", "value": 1e3 * statistics.median(values)}
        for name, values in times.items()
    ]


def section(folder: Path) -> str:
    """The table, as Markdown; empty without a measurement."""
    path = folder / CSV
    if not path.exists():
        return ""
    cost = pd.read_csv(path).set_index("subject")["value"]
    columns = {"update, ms": cost.map("{:.0f}".format), "update / without": (cost / cost[WITHOUT]).map("{:.2f}".format)}
    table = markdown(pd.DataFrame(columns, index=cost.index))
    return SECTION.format(csv=CSV, n_envs=N_ENVS, n_steps=N_STEPS, table=table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="CSV file to write (default: print only)")
    arguments = parser.parse_args()
    import pybullet_envs_gymnasium  # noqa: F401  # registers the robots

    torch.set_num_threads(1)
    records = measure("HopperBulletEnv-v0", arguments.repeats)
    for record in records:
        print(f"{record['subject']:24} {record['value']:10.1f} ms")
    if arguments.output is not None:
        arguments.output.unlink(missing_ok=True)
        append_records(arguments.output, records)


if __name__ == "__main__":
    main()
