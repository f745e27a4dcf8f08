"""Policies that keep apart, or follow: ``python -m sb3_wng.benchmarks.multipolicy_study EXPERIMENT [--seeds 0 1 ...]``.

The experiments of Abdullah, Pacchiano & Draief (2018, arXiv 1802.03976). ``goals``: do two policies find the two goals of a
plane, and four policies four? ``pictures``: one such run, its paths and potentials. ``grid``: does attraction to a route
speed up learning to cross hills (:mod:`sb3_wng.benchmarks.hill_grid`)? A run that is in the output file is not repeated.

Columns of ``goals``: ``found`` is the number of different goals within 0.5 of which some policy, acting without noise, ends.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from sb3_wng.benchmarks import hill_grid
from sb3_wng.benchmarks.checkpoints import only_one
from sb3_wng.benchmarks.records import RESULTS, append_records, read_records, write_records
from sb3_wng.envs import make_batched
from sb3_wng.envs.goals import circle_of_goals
from sb3_wng.geometry import DualPotentials
from sb3_wng.population import AnnealedCoefficient, WassersteinPopulation

N_STEPS = 20  # an episode: paths are compared whole
N_EPISODES = 100  # per policy and iteration
N_ITERATIONS = 120
RADIUS = 0.5  # of a goal that counts as found
PICTURES = (0, 15, 30, 60, 100)
REACH = 4.5  # half the width of the maps

NATURAL = {"algorithm": "npg", "algorithm_kwargs": {"target_kl": 0.05, "batch_size": 1000, "n_critic_updates": 2}}
PLAIN = {"algorithm": "pg", "learning_rate": 1e-2}
REPULSION = AnnealedCoefficient(-1.0, -0.1, 0.5)


@dataclass(frozen=True)
class Setting:
    """One line of the table.

    :param arguments: of :class:`sb3_wng.WassersteinPopulation`
    :param n_goals: and policies
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    n_goals: int = 2


def settings() -> dict[str, Setting]:
    """What is compared, by its name in the table."""
    repelled = {**NATURAL, "wasserstein_coef": REPULSION}
    return {
        "repelled": Setting(repelled),
        "independent": Setting({**NATURAL, "wasserstein_coef": 0.0}),
        "repelled, 4 goals": Setting(repelled, 4),
        "independent, 4 goals": Setting({**NATURAL, "wasserstein_coef": 0.0}, 4),
        "constant -0.1": Setting({**NATURAL, "wasserstein_coef": -0.1}),
        "random features": Setting({**repelled, "distance": "dual"}),
        "squared cost": Setting({**repelled, "cost": "sqeuclidean"}),
        "REINFORCE, repelled": Setting({**PLAIN, "wasserstein_coef": REPULSION}),
        "REINFORCE, independent": Setting({**PLAIN, "wasserstein_coef": 0.0}),
    }


def make_model(setting: Setting, seed: int) -> WassersteinPopulation:
    """The population, with the source's network and sample sizes."""
    k = setting.n_goals
    task: dict[str, Any] = {} if k == 2 else {"goals": circle_of_goals(k)}
    env = make_batched("TwoGoals-v0", k * N_EPISODES, seed=seed, **task)
    return WassersteinPopulation(
        "MlpPolicy",
        env,
        n_policies=k,
        n_steps=N_STEPS,
        embedding="state_sequence",
        embedding_horizon=N_STEPS,
        policy_kwargs={"net_arch": [15, 15]},
        stats_window_size=N_EPISODES,
        seed=seed,
        device="cpu",
        **setting.arguments,
    )


def final_positions(model: WassersteinPopulation) -> NDArray[np.float64]:
    """Where each policy ends without noise, shape (k, 2)."""
    env = make_batched("TwoGoals-v0", 1, seed=0, goals=model.get_env().get_attr("goals")[0])  # type: ignore[union-attr]
    ends = []
    for policy in range(model.n_policies):
        observations = env.reset()
        for _ in range(N_STEPS):
            actions, _ = model.predict(observations, particle=policy, deterministic=True)
            step = env.step_batch(actions)
            observations = step.observations
        ends.append(step.final_observations[0])
    return np.array(ends, dtype=np.float64)


def n_found(ends: NDArray[np.float64], goals: NDArray[np.float64]) -> int:
    """How many of the goals (g, 2) have a final position (k, 2) within :data:`RADIUS`."""
    distances = np.linalg.norm(ends[:, None] - goals[None], axis=2)
    return int((distances.min(axis=0) < RADIUS).sum())


def run(name: str, seed: int) -> dict[str, object]:
    """Train once; one record."""
    torch.set_num_threads(1)
    setting = settings()[name]
    model = make_model(setting, seed)
    start = time.perf_counter(), time.process_time()
    model.learn(N_ITERATIONS * model.n_steps * model.n_envs, log_interval=N_ITERATIONS + 1)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    ends = final_positions(model)
    goals = np.array(model.get_env().get_attr("goals")[0])  # type: ignore[union-attr]
    gaps = [np.linalg.norm(a - b) for a, b in combinations(ends, 2)]
    return {
        "experiment": "goals",
        "algorithm": name,
        "environment": "TwoGoals-v0",
        "n_goals": setting.n_goals,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "found": n_found(ends, goals),
        "return_worst": f"{model.mean_returns.min():.2f}",
        "return_best": f"{model.mean_returns.max():.2f}",
        "smallest_gap": f"{min(gaps):.2f}",
        "ends": " ".join(f"{x:.2f},{y:.2f}" for x, y in ends),
        "wall_seconds": f"{seconds[0]:.1f}",
        "cpu_seconds": f"{seconds[1]:.1f}",
    }


class Pictures(BaseCallback):
    """Paths of all policies, and the potential of a straight walk to each place, before some of the updates."""

    def __init__(self, n_paths: int = 20, n_cells: int = 19) -> None:
        super().__init__()
        self.n_paths = n_paths
        self.places = np.linspace(-REACH, REACH, n_cells)
        self.n_rollouts = 0
        self.paths: list[dict[str, object]] = []
        self.maps: list[dict[str, object]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.n_rollouts in PICTURES:
            self._take()
        self.n_rollouts += 1

    def _take(self) -> None:
        model = self.model
        assert isinstance(model, WassersteinPopulation)
        walked = [share.observations.swapaxes(0, 1) for share in model.shares()]  # (episodes, steps, 2) of each policy
        for i, paths in enumerate(walked):
            for path, step in np.ndindex(self.n_paths, N_STEPS):
                x, y = paths[path, step]
                self.paths.append({"iteration": self.n_rollouts, "policy": i, "path": path, "step": step, **_place(x, y)})
        points = [torch.as_tensor(paths).flatten(start_dim=1) for paths in walked]
        grid = np.stack(np.meshgrid(self.places, self.places), axis=-1).reshape(-1, 2)
        for i, values in enumerate(self._potentials(points, grid)):
            for (x, y), value in zip(grid, values, strict=True):
                self.maps.append({"iteration": self.n_rollouts, "policy": i, **_place(x, y), "potential": f"{value:.3f}"})

    def _potentials(self, points: list[torch.Tensor], ends: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Potentials of policies 0 and 1 in the transport to each other, at straight walks to places (n, 2)."""
        shares = torch.linspace(0, 1, N_STEPS)[None, :, None]
        walks = (torch.as_tensor(ends, dtype=torch.float32)[:, None] * shares).flatten(start_dim=1)
        values = []
        for here, there in ((0, 1), (1, 0)):
            across, within = (DualPotentials(2 * N_STEPS, entropic_reg=0.2, cost="euclidean") for _ in range(2))
            across.fit(points[here], points[there])
            within.fit(points[here], points[here], across.gamma)
            potential = (across(walks) - within(walks)).double()
            values.append((potential - potential.mean()).numpy())
        return values


def _place(x: float, y: float) -> dict[str, object]:
    return {"x": f"{x:.3f}", "y": f"{y:.3f}"}


def take_pictures(folder: Path, seed: int) -> None:
    """One repelled run's paths and potentials as two CSV files."""
    torch.set_num_threads(1)
    model, pictures = make_model(settings()["repelled"], seed), Pictures()
    model.learn(N_ITERATIONS * model.n_steps * model.n_envs, callback=pictures, log_interval=N_ITERATIONS + 1)
    write_records(folder / "multipolicy_paths.csv", pictures.paths)
    write_records(folder / "multipolicy_maps.csv", pictures.maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", choices=["goals", "pictures", "grid"])
    parser.add_argument("--seeds", type=int, nargs="+", help="default: ten, for grid five, for pictures the first")
    parser.add_argument("--algorithms", nargs="+", help="names in the table of goals (default: all)")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    known = settings() if arguments.experiment == "goals" else {}
    if unknown := set(arguments.algorithms or ()) - set(known):
        parser.error(f"--algorithms: {arguments.experiment} has no {sorted(unknown)}; it has {list(known)}")
    seeds = list(dict.fromkeys(arguments.seeds or range(5 if arguments.experiment == "grid" else 10)))
    if arguments.experiment == "pictures":
        take_pictures(arguments.folder, seeds[0])
    elif arguments.experiment == "grid":
        with only_one(path := arguments.folder / "multipolicy_grid.csv"):
            hill_grid.study(path, seeds)
    else:
        path = arguments.folder / "multipolicy_goals.csv"
        # all seeds of what matters most come first
        chosen = product(dict.fromkeys(arguments.algorithms or known), seeds)
        with only_one(path):
            done = {(row["algorithm"], int(row["seed"])) for row in read_records(path)}
            for name, seed in (key for key in chosen if key not in done):
                record = run(name, seed)
                append_records(path, [record])
                print(name, seed, record["found"], record["ends"], flush=True)


if __name__ == "__main__":
    main()
