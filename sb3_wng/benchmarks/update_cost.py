"""What an update costs, as ratios within one process: ``python -m sb3_wng.benchmarks.update_cost [--output FILE]``.

HopperBullet, 8 environments of 256 steps, one torch thread. Algorithms take turns, so that a noisy machine disturbs all
of them alike; medians are reported. Then the Jacobian of the kernel metric: one batched backward pass against a loop.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_wng import NPG, WNPG
from sb3_wng.benchmarks.records import append_records
from sb3_wng.geometry import vector_jacobian_products

ENV = "HopperBulletEnv-v0"
N_ENVS, N_STEPS, N_CRITIC_UPDATES = 8, 256, 20


def make_models() -> dict[str, OnPolicyAlgorithm]:
    """Same rollout, critic and CG budget for all trust-region methods; PPO at its defaults."""
    from sb3_contrib import TRPO

    settings: dict[str, Any] = {
        "n_steps": N_STEPS,
        "batch_size": 128,
        "n_critic_updates": N_CRITIC_UPDATES,
        "cg_max_steps": 15,
    }
    makers: dict[str, Callable[[VecNormalize], OnPolicyAlgorithm]] = {
        "WNPG": lambda env: WNPG("MlpPolicy", env, **settings, seed=0, device="cpu"),
        "WNPG, metric on 1/4": lambda env: WNPG("MlpPolicy", env, **settings, sub_sampling_factor=4, seed=0, device="cpu"),
        "WNPG, kernel": lambda env: WNPG("MlpPolicy", env, **settings, metric="kernel", seed=0, device="cpu"),
        "NPG": lambda env: NPG("MlpPolicy", env, **settings, seed=0, device="cpu"),
        "TRPO": lambda env: TRPO("MlpPolicy", env, **settings, seed=0, device="cpu"),
        "PPO": lambda env: PPO("MlpPolicy", env, n_steps=N_STEPS, seed=0, device="cpu"),
    }
    return {name: make(VecNormalize(make_vec_env(ENV, N_ENVS, seed=0))) for name, make in makers.items()}


def seconds(function: Callable[[], object]) -> float:
    """CPU seconds of this process: other processes slow it less than they slow the clock on the wall."""
    start = time.process_time()
    function()
    return time.process_time() - start


def time_updates(repeats: int) -> list[dict[str, object]]:
    """Median milliseconds of collecting a rollout, of the policy's part of the update and of the whole update."""
    models = make_models()
    callbacks = {name: model._setup_learn(1)[1] for name, model in models.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"rollout": [], "policy": [], "update": []} for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            env, callback = model.get_env(), CallbackList([callbacks[name]])
            assert env is not None
            callback.init_callback(model)
            times[name]["rollout"].append(
                seconds(lambda m=model, e=env, c=callback: m.collect_rollouts(e, c, m.rollout_buffer, N_STEPS))  # type: ignore[misc]
            )
            times[name]["update"].append(seconds(model.train))
            if name != "PPO":  # the policy's part: a second update from the same rollout, without critic
                model.n_critic_updates = 0  # type: ignore[attr-defined]
                times[name]["policy"].append(seconds(model.train))
                model.n_critic_updates = N_CRITIC_UPDATES  # type: ignore[attr-defined]
    median = {name: {part: statistics.median(v[1:]) if v else None for part, v in t.items()} for name, t in times.items()}
    records: list[dict[str, object]] = []
    for name, parts in median.items():
        for part, value in parts.items():
            if value is not None:
                records.append({"experiment": "update", "subject": name, "quantity": f"{part} ms", "value": 1e3 * value})
        steps = N_ENVS * N_STEPS / ((parts["rollout"] or 0) + (parts["update"] or 0))
        records.append({"experiment": "update", "subject": name, "quantity": "env steps per s", "value": steps})
    return records


def time_jacobians(repeats: int) -> list[dict[str, object]]:
    """Median milliseconds of the (n_basis, p) Jacobian: one batched backward pass, and a loop of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(15, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    parameters = list(network.parameters())
    records: list[dict[str, object]] = []
    for n in (64, 512, 2048):
        for n_basis in (5, 20, 50):
            outputs, cotangents = network(torch.randn(n, 15)), torch.randn(n_basis, n, 3)
            methods = {
                "batched": lambda o=outputs, c=cotangents: vector_jacobian_products(o, parameters, c),
                "loop": lambda o=outputs, c=cotangents: torch.stack(
                    [parameters_to_vector(torch.autograd.grad(o, parameters, row, retain_graph=True)) for row in c]
                ),
            }
            times: dict[str, list[float]] = {name: [] for name in methods}
            for _ in range(repeats + 2):
                for name, method in methods.items():
                    times[name].append(seconds(method))
            for name, values in times.items():
                value = 1e3 * statistics.median(values[2:])
                subject = f"{name}, {n} samples, {n_basis} functions"
                records.append({"experiment": "jacobian", "subject": subject, "quantity": "ms", "value": value})
    return records


def jacobian_memory(width: int = 3100, n_basis: int = 10) -> list[dict[str, object]]:
    """Peak memory that a Jacobian of about 10^7 parameters adds, in units of the n_basis x p numbers it consists of."""
    network = nn.Sequential(nn.Linear(15, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
    parameters = list(network.parameters())
    p = sum(q.numel() for q in parameters)
    outputs, cotangents = network(torch.randn(64, 15)), torch.randn(n_basis, 64, 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vector_jacobian_products(outputs, parameters, cotangents)
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    subject = f"p = {p}, {n_basis} functions"
    return [{"experiment": "memory", "subject": subject, "quantity": "x n_basis p floats", "value": added / (4 * n_basis * p)}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="CSV file to write (default: print only)")
    arguments = parser.parse_args()
    import pybullet_envs_gymnasium  # noqa: F401  # registers the robots

    torch.set_num_threads(1)
    records = jacobian_memory() + time_jacobians(arguments.repeats) + time_updates(arguments.repeats)
    for record in records:
        print(f"{record['experiment']:9} {record['subject']:38} {record['quantity']:18} {record['value']:12.3f}")
    if arguments.output is not None:
        arguments.output.unlink(missing_ok=True)
        append_records(arguments.output, records)


if __name__ == "__main__":
    main()
