"""What a trust region does not see: ``python -m sb3_wng.benchmarks.unseen_states [--seeds 20 21] [--jobs 1] [--output FILE]``.

Metric, line search and cap are averages over the states of a rollout. WNPG with a constant radius learns to balance a double
pendulum; at every few updates, the mean squared distance between the policies before and after is measured on the rollout and
on the first steps of fresh episodes. A run that is in the output file is not repeated.

Columns: ``on_rollout``, ``on_first_steps``: that distance, in units of the policy's spread, mean over the updates of a quarter
of training; ``parameter_step``: length of the actor's step; ``falls``, ``early_falls``: how many of ``N_EPISODES`` noisy
episodes of the last policy end before the time limit, and within ``EARLY`` steps (in the last quarter's row).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.utils import parameters_to_vector

from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.benchmarks.experiments import CONSTANT_RADIUS, PENDULUM
from sb3_wng.benchmarks.markdown import markdown
from sb3_wng.benchmarks.models import Experiment, Method, make_env, make_model
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import RESULTS, append_records, read_records

CSV = "unseen_states.csv"
DAMPINGS = (0.1, 1.0)
SEEDS = (20, 21)
N_TIMESTEPS, N_PARTS = 200_000, 4
INTERVAL = 8  # updates from one measurement to the next
N_STARTS, N_FIRST_STEPS = 15, 25
N_EPISODES, TIME_LIMIT, EARLY = 50, 1000, 50
QUANTITIES = ("on_rollout", "on_first_steps", "parameter_step")

SECTION = """## What a trust region does not see

`python -m sb3_wng.benchmarks.unseen_states --output docs/benchmarks/{csv}`: WNPG with a constant radius of 0.02 on
InvertedDoublePendulum, seeds {seeds}. How far an update moves the policy (mean squared distance of actions in units of the
spread), on the rollout it was computed from and on the first {n_first} steps of fresh episodes:

{table}

The task is solved after about half of the steps. A rollout of 1024 steps then hardly shows a start, and nothing but the
damping holds the policy there. Of {n_episodes} noisy episodes of the last policies, {falls}.
"""


class Movement(BaseCallback):
    """How far updates move the policy where they look and where they do not.

    :param env: where fresh episodes begin; it takes its statistics from the model's
    :param interval: updates from one measurement to the next
    """

    model: NaturalPolicyGradient

    def __init__(self, env: VecNormalize, interval: int) -> None:
        super().__init__()
        self.env, self.interval = env, interval
        self.records: list[dict[str, float]] = []
        self._n_rollouts = 0
        self._before: torch.Tensor | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._n_rollouts += 1
        if self._n_rollouts % self.interval:
            return
        buffer = self.model.rollout_buffer
        self._states = {
            "on_rollout": torch.as_tensor(buffer.swap_and_flatten(buffer.observations)),
            "on_first_steps": self._first_steps(),
        }
        self._laws = {name: self.model.action_law(states).detach() for name, states in self._states.items()}
        self._before = parameters_to_vector(self.model.actor_parameters).detach()

    def _on_rollout_start(self) -> None:
        if self._before is None:
            return
        moved = parameters_to_vector(self.model.actor_parameters).detach() - self._before
        record = {"timesteps": float(self.num_timesteps), "parameter_step": moved.norm().item()}
        for name, states in self._states.items():
            law = self.model.action_law(states).detach()
            record[name] = (self._laws[name].wasserstein_distance(law).mean() / self._laws["on_rollout"].spread()).item()
        self.records.append(record)
        self._before = None

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _first_steps(self) -> torch.Tensor:
        """Normalised observations of the first steps of episodes, shape (n, d)."""
        trained = self.model.get_vec_normalize_env()
        assert trained is not None
        self.env.obs_rms = trained.obs_rms
        observations = []
        for _ in range(N_STARTS):
            current = self.env.reset()
            for _ in range(N_FIRST_STEPS):
                observations.append(np.asarray(current)[0])
                after, _, dones, _ = self.env.step(self.model.predict(np.asarray(current))[0])
                if dones[0]:
                    break
                current = np.asarray(after)
        return torch.as_tensor(np.array(observations))


def run(damping: float, seed: int, n_timesteps: int = N_TIMESTEPS) -> list[dict[str, object]]:
    """Train once; a record for each part of training."""
    torch.set_num_threads(1)
    method = Method("WNPG", "wnpg", {**CONSTANT_RADIUS, "cg_damping": damping})
    model = make_model(
        Experiment("unseen_states", "", {"WNPG": method}, {PENDULUM: n_timesteps}, (seed,)), "WNPG", PENDULUM, seed
    )
    env = make_env(PENDULUM, {"normalize": True}, seed + 1000)
    assert isinstance(env, VecNormalize)
    env.training = False
    movement = Movement(env, INTERVAL)
    model.learn(n_timesteps, callback=movement, log_interval=10**9)
    lengths = np.array(evaluate_policy(model, env, N_EPISODES, deterministic=False, return_episode_rewards=True)[1])
    origin = {"experiment": "unseen_states", "environment": PENDULUM, "damping": damping, "seed": seed}
    records: list[dict[str, object]] = []
    for part in range(1, N_PARTS + 1):
        end = part * n_timesteps // N_PARTS
        rows = [row for row in movement.records if end - n_timesteps // N_PARTS < row["timesteps"] <= end]
        means = {name: f"{np.mean([row[name] for row in rows]):.4g}" for name in QUANTITIES}
        records.append({**origin, "timesteps": end, **means, "falls": "", "early_falls": ""})
    records[-1].update(falls=int((lengths < TIME_LIMIT).sum()), early_falls=int((lengths <= EARLY).sum()))
    return records


def section(folder: Path) -> str:
    """The part of the page of benchmarks; empty before there are results."""
    if not (folder / CSV).exists():
        return ""
    rows = pd.read_csv(folder / CSV)
    rows = rows[rows.groupby("seed")["damping"].transform("nunique") == len(DAMPINGS)]
    if rows.empty:
        return ""
    means = rows.groupby(["timesteps", "damping"])[["on_rollout", "on_first_steps"]].mean()
    columns = {
        f"damping {damping:g}, {name}": means.xs(damping, level="damping")[quantity].map("{:.3f}".format)
        for damping in DAMPINGS
        for name, quantity in (("rollout", "on_rollout"), ("first steps", "on_first_steps"))
    }
    table = pd.DataFrame(columns).rename(index="to {:,} steps".format)
    counts = rows.dropna(subset="falls").astype({"falls": int, "early_falls": int})
    n_seeds = rows.seed.nunique()
    falls = ", ".join(
        f"{part.falls.sum()} fell with damping {damping:g} (by seed, {_early(part)} within {EARLY} steps)"
        for damping, part in counts.groupby("damping")
    )
    return SECTION.format(
        csv=CSV,
        seeds=" and ".join(map(str, sorted(rows.seed.unique()))),
        n_first=N_FIRST_STEPS,
        table=markdown(table),
        n_episodes=n_seeds * N_EPISODES,
        falls=falls,
    )


def _early(falls: pd.DataFrame) -> str:
    return " and ".join(f"{early} of {total}" for early, total in zip(falls.early_falls, falls.falls, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / CSV)
    arguments = parser.parse_args()

    def pending() -> list[tuple[float, int]]:
        done = {(float(row["damping"]), int(row["seed"])) for row in read_records(arguments.output)}
        return [(damping, seed) for seed in arguments.seeds for damping in DAMPINGS if (damping, seed) not in done]

    def record(_: tuple[float, int], records: list[dict[str, object]]) -> bool:
        append_records(arguments.output, records)
        return True

    return 0 if run_pending(arguments.output, arguments.jobs, pending, run, record) else 1


if __name__ == "__main__":
    sys.exit(main())
