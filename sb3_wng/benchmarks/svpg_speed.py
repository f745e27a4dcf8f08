"""Env steps per CPU second of SVPG against SB3's A2C and TD3, and what Stein's direction costs.

``python -m sb3_wng.benchmarks.svpg_speed [--output FILE]``, all in one process of one thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise

from sb3_wng.benchmarks.records import append_records
from sb3_wng.benchmarks.svpg_study import CRITIC, N_COLUMNS, N_STEPS, NETWORK, SWING_UP, Setting, make_model
from sb3_wng.envs import make_batched
from sb3_wng.geometry import kernel_repulsion, median_bandwidth, particle_kernel, squared_distances, svgd_direction

N_OFF_POLICY = 60_000  # steps


def measure(n_iterations: int = 3) -> list[dict[str, object]]:
    """Env steps per CPU second of 16 particles and of SB3's A2C and TD3, and the Stein update's share, all in one process."""
    records: list[dict[str, object]] = []

    def record(name: str, value: float, unit: str) -> None:
        records.append({"quantity": name, "value": f"{value:.4g}", "unit": unit})
        print(f"{name}: {value:.4g} {unit}", flush=True)

    for n_steps in (5, N_STEPS):
        env = make_batched(SWING_UP, 20, seed=0)
        agent = A2C("MlpPolicy", env, n_steps=n_steps, policy_kwargs=NETWORK, device="cpu", seed=0)
        record(f"SB3 A2C, 20 environments, n_steps {n_steps}", steps_per_second(agent, 20 * N_STEPS), "steps/s")
    off_policy = make_off_policy()
    record("SB3 TD3, 1 environment", steps_per_second(off_policy, N_OFF_POLICY, off_policy.learning_starts), "steps/s")
    episodes = [episode["r"] for episode in off_policy.ep_info_buffer or ()]
    record(f"SB3 TD3, last 20 episodes of {off_policy.num_timesteps} steps", float(np.mean(episodes)), "mean return")
    for name, critic in (("pg", {}), ("pg_linear", {}), ("a2c", CRITIC)):
        model = make_model(Setting({"algorithm": name, "algorithm_kwargs": critic}), SWING_UP, 0)
        record(f"SVPG {name}, 16 x 20 environments", steps_per_second(model, n_iterations * N_COLUMNS * N_STEPS), "steps/s")
    for n, p in ((16, 6852), (64, 6852), (16, 100_000), (64, 100_000)):
        record(f"Stein direction, {n} particles x {p} parameters", stein_seconds(n, p), "s")
    hidden = {"net_arch": {"pi": [300, 300, 20], "vf": []}}  # 98,142 parameters with five observations
    setting = Setting({"algorithm": "pg", "n_particles": 64, "policy_kwargs": hidden})
    large = make_model(setting, SWING_UP, 0)
    n_parameters = large.policy.theta.shape[1]
    per_update = N_COLUMNS * N_STEPS / steps_per_second(large, N_COLUMNS * N_STEPS)
    record(f"SVPG pg, 64 x 5 environments, {n_parameters} parameters", per_update, "s per iteration")
    record("Stein direction's share of it", stein_seconds(64, n_parameters) / per_update, "")
    return records


def make_off_policy() -> TD3:
    """One agent on CartPoleSwingUp, with exploration noise and otherwise SB3's defaults."""
    noise, env = NormalActionNoise(np.zeros(1), np.full(1, 0.1)), make_batched(SWING_UP, 1, seed=0)
    arguments: dict[str, Any] = {"policy_kwargs": NETWORK, "stats_window_size": 20, "device": "cpu", "seed": 0}
    return TD3("MlpPolicy", env, action_noise=noise, **arguments)


def steps_per_second(model: BaseAlgorithm, n_timesteps: int, start_timesteps: int = 1) -> float:
    """CPU time of training after a short start."""
    model.learn(start_timesteps)
    start = time.process_time()
    n_before = model.num_timesteps
    model.learn(n_timesteps, reset_num_timesteps=False)
    return (model.num_timesteps - n_before) / (time.process_time() - start)


def stein_seconds(n: int, p: int) -> float:
    """CPU seconds of one direction from scores and particles (n, p); the fastest of three."""
    scores, particles = torch.randn(n, p), torch.randn(n, p)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        distances = squared_distances(particles)
        bandwidth = median_bandwidth(distances)
        kernel = particle_kernel(distances, bandwidth)
        svgd_direction(scores, kernel, kernel_repulsion(particles, kernel, bandwidth))
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="CSV file to write (default: print only)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = measure()
    if arguments.output is not None:
        arguments.output.unlink(missing_ok=True)
        append_records(arguments.output, records)


if __name__ == "__main__":
    main()
