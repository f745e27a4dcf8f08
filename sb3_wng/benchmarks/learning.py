"""Learning comparisons: ``python -m sb3_wng.benchmarks.learning EXPERIMENT [--seeds 30 31 32] [--jobs 2]``.

``first_learning``: our algorithms with the hyperparameters that ship in ``zoo_hyperparams``, PPO and TRPO at SB3's defaults
and RL-Zoo's settings. ``kernel_variants``: WNPG with metrics from samples of behaviour, and as published. Both on two
PyBullet robots. Returns are those of the training episodes, averaged over bins of steps. A run that is already in the
output file is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import importlib.resources
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import NPG, PG, WNPG
from sb3_wng.benchmarks.records import append_records

ENVIRONMENTS = ("HopperBulletEnv-v0", "HalfCheetahBulletEnv-v0")
TIMESTEPS, BIN = 200_000, 10_000


@dataclass(frozen=True)
class Method:
    """An algorithm and its settings: our YAML file of that name, if any, then the arguments given here."""

    algorithm: type[BaseAlgorithm]
    hyperparameters: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def experiments() -> dict[str, dict[str, Method]]:
    """The methods that each experiment compares, by the names they have in tables."""
    from sb3_contrib import TRPO

    # rl_zoo3 2.9.2, and the same with half the rollout
    zoo_trpo = {"n_envs": 2, "batch_size": 128, "cg_max_steps": 25, "n_critic_updates": 20, "learning_rate": 1e-3}
    trajectories = {"metric": "kernel", "n_basis": 10}
    return {
        "first_learning": {
            "WNPG": Method(WNPG, "wnpg"),
            "NPG": Method(NPG, "npg"),
            "PG": Method(PG, "pg"),
            "PPO": Method(PPO),
            "TRPO": Method(TRPO, arguments={**zoo_trpo, "n_steps": 1024}),
            "TRPO 2 x 512": Method(TRPO, arguments={**zoo_trpo, "n_steps": 512}),
        },
        "kernel_variants": {
            "actions": Method(WNPG, "wnpg", {"metric": "kernel", "n_basis": 50}),
            "final_state": Method(WNPG, "wnpg", {**trajectories, "embedding": "final_state"}),
            "combined, final_state": Method(WNPG, "wnpg", {**trajectories, "metric": "combined", "embedding": "final_state"}),
            "published": Method(WNPG, "published/wnpg"),
        },
    }


def shipped_hyperparameters(name: str, environment: str) -> dict[str, Any]:
    """Entry of ``zoo_hyperparams/{name}.yml`` as RL-Zoo would read it, less what only RL-Zoo understands."""
    text = importlib.resources.files("sb3_wng.zoo_hyperparams").joinpath(f"{name}.yml").read_text()
    entry = yaml.safe_load(text)[environment]
    return {key: value for key, value in entry.items() if key not in ("n_timesteps", "normalize", "policy")}


def make_model(method: Method, environment: str, seed: int) -> BaseAlgorithm:
    shipped = shipped_hyperparameters(method.hyperparameters, environment) if method.hyperparameters else {}
    arguments = {**shipped, **method.arguments}
    env = VecNormalize(make_vec_env(environment, arguments.pop("n_envs", 1), seed=seed), gamma=0.99)
    return method.algorithm("MlpPolicy", env, seed=seed, device="cpu", **arguments)


class EpisodeRecorder(BaseCallback):
    """Steps, returns and seconds at the end of every training episode."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float, float]] = []
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, info["episode"]["r"], time.perf_counter() - self._start))
        return True


def run(experiment: str, name: str, environment: str, seed: int) -> list[dict[str, object]]:
    """Train once; one record per bin of steps in which an episode ended."""
    import pybullet_envs_gymnasium  # noqa: F401  # registers the robots

    torch.set_num_threads(1)
    recorder = EpisodeRecorder()
    make_model(experiments()[experiment][name], environment, seed).learn(TIMESTEPS, callback=recorder)
    steps, returns, seconds = (np.array(column) for column in zip(*recorder.episodes, strict=True))
    key = {"experiment": experiment, "algorithm": name, "environment": environment, "seed": seed}
    records: list[dict[str, object]] = []
    for end in range(BIN, TIMESTEPS + 1, BIN):
        inside = (steps > end - BIN) & (steps <= end)
        if inside.any():
            values = {
                "timesteps": end,
                "return": f"{returns[inside].mean():.2f}",
                "wall_seconds": f"{seconds[inside][-1]:.1f}",
            }
            records.append({**key, **values})
    return records


def finished_runs(path: Path) -> set[tuple[str, str, int]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["algorithm"], row["environment"], int(row["seed"])) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", choices=list(experiments()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 32])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--algorithms", nargs="+", help="names in the table (default: all)")
    parser.add_argument("--output", type=Path, help="CSV file (default: docs/benchmarks/EXPERIMENT.csv)")
    arguments = parser.parse_args()
    path = arguments.output or Path("docs/benchmarks") / f"{arguments.experiment}.csv"
    names = arguments.algorithms or list(experiments()[arguments.experiment])
    done = finished_runs(path)
    runs = [(name, env, seed) for seed in arguments.seeds for env in ENVIRONMENTS for name in names]
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, arguments.experiment, *key): key for key in runs if key not in done}
        for count, future in enumerate(as_completed(futures), 1):
            records = future.result()
            append_records(path, records)
            print(f"{count}/{len(futures)}", *futures[future], records[-1]["return"], flush=True)


if __name__ == "__main__":
    main()
