"""Which embedding for which task: ``python -m sb3_wng.benchmarks.embedding_ranks --output FILE [--page FILE]``.

WNPG learns four tasks; at three stages, :func:`sb3_wng.rank_embeddings` compares all embeddings on a large rollout of the
policy of that stage. Then what each metric's part of an update costs. What is already in the output file is not repeated.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import WNPG, rank_embeddings
from sb3_wng.algorithms import NaturalPolicyGradient
from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS
from sb3_wng.behavior import EMBEDDINGS
from sb3_wng.benchmarks.learning import Method, make_model, shipped_hyperparameters
from sb3_wng.benchmarks.records import append_records
from sb3_wng.benchmarks.update_cost import seconds

TASKS = ("HopperBulletEnv-v0", "HalfCheetahBulletEnv-v0", "InvertedDoublePendulumBulletEnv-v0", "CartPole-v1")
STAGES = (2048, 20480, 40960)
SEED = 50
N_ENVS, N_STEPS = 2, 4096  # of the rollout that is ranked: its halves hold twice as many windows as basis functions
N_BASIS, COST_BASES = 50, (10, 50)
COLUMNS = (
    *("experiment", "environment", "seed", "timesteps", "metric", "n_basis"),
    *("action_gain", "kl_gain", "held_out_gain", "own_gain", "closed_form_gain", "effective_rank", "noise"),
    *("n_samples", "damping", "milliseconds"),
)


def rank_task(environment: str) -> Iterator[dict[str, object]]:
    """Train once; at every stage, rank on a rollout that plays no part in learning."""
    model = make_model(Method(WNPG, "wnpg"), environment, SEED)
    assert isinstance(model, NaturalPolicyGradient)
    training_env = model.get_vec_normalize_env()
    assert training_env is not None
    for stage in STAGES:
        model.learn(stage - model.num_timesteps, reset_num_timesteps=False)
        env = VecNormalize(make_vec_env(environment, N_ENVS, seed=SEED + 1000), training=False)
        env.obs_rms, env.ret_rms = training_env.obs_rms, training_env.ret_rms
        ranked = WNPG(
            "MlpPolicy", env, n_steps=N_STEPS, gae_lambda=model.gae_lambda, gamma=model.gamma, seed=SEED, device="cpu"
        )
        ranked.policy.load_state_dict(model.policy.state_dict())
        for rank in rank_embeddings(ranked, n_basis=N_BASIS):
            values = {key: value for key, value in rank._asdict().items() if key != "embedding"}
            rounded = {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in values.items()}
            row = {"experiment": "rank", "environment": environment, "seed": SEED, "timesteps": stage}
            yield {**dict.fromkeys(COLUMNS), **row, "metric": rank.embedding, "n_basis": N_BASIS, **rounded}
        env.close()


def variants() -> dict[tuple[str, int | None], dict[str, Any]]:
    """Arguments of WNPG by the names of a metric and its number of basis functions."""
    settings: dict[tuple[str, int | None], dict[str, Any]] = {
        (metric, None): {"metric": metric} for metric in ("closed_form", "fisher", "euclidean")
    }
    for n_basis in COST_BASES:
        for embedding in (*STATE_EMBEDDINGS, *EMBEDDINGS):
            settings[embedding, n_basis] = {"metric": "kernel", "embedding": embedding, "n_basis": n_basis}
    return settings


def time_updates(environment: str, repeats: int) -> Iterator[dict[str, object]]:
    """Median CPU milliseconds of the policy's part of an update, all from one rollout and the same parameters."""
    arguments = shipped_hyperparameters("wnpg", environment)
    env = VecNormalize(make_vec_env(environment, arguments["n_envs"], seed=SEED))
    common = {"n_steps": arguments["n_steps"], "target_kl": arguments["target_kl"], "n_critic_updates": 0}
    models = {
        key: WNPG("MlpPolicy", env, **common, **settings, seed=SEED, device="cpu") for key, settings in variants().items()
    }
    first = next(iter(models.values()))
    _, callback = first._setup_learn(1)
    first.collect_rollouts(env, callback, first.rollout_buffer, first.n_steps)
    start = {name: value.clone() for name, value in first.policy.state_dict().items()}
    times: dict[tuple[str, int | None], list[float]] = {key: [] for key in models}
    for _ in range(repeats + 1):
        for key, model in models.items():
            model.rollout_buffer = first.rollout_buffer
            model.set_logger(configure(None, []))
            model.policy.load_state_dict(start)
            times[key].append(seconds(model.train))
    for (metric, n_basis), values in times.items():
        row = {"experiment": "cost", "environment": environment, "seed": SEED, "metric": metric, "n_basis": n_basis}
        yield {**dict.fromkeys(COLUMNS), **row, "milliseconds": f"{1e3 * statistics.median(values[1:]):.4g}"}


def measure(path: Path, repeats: int) -> None:
    """Append what the file lacks, a task at a time."""
    done = set(pd.read_csv(path)[["experiment", "environment"]].itertuples(index=False, name=None)) if path.exists() else set()
    for environment in TASKS:
        if ("rank", environment) not in done:
            append_records(path, list(rank_task(environment)))
            print("ranked", environment, flush=True)
    if ("cost", TASKS[0]) not in done:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The kernel metric has")
            append_records(path, list(time_updates(TASKS[0], repeats)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/embedding_ranks.csv"))
    parser.add_argument("--repeats", type=int, default=15, help="of each timing")
    arguments = parser.parse_args()
    import pybullet_envs_gymnasium  # noqa: F401  # registers the robots

    torch.set_num_threads(1)
    measure(arguments.output, arguments.repeats)


if __name__ == "__main__":
    main()
