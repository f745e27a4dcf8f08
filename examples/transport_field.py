"""How an update moves behaviour: the transport field of WNPG's step, drawn in a two-dimensional behaviour space.

    pip install -e ".[plots]" && python examples/transport_field.py

A point in the plane learns to reach a goal. Its behaviour is where it is at the end of an episode. At three stages of
learning, the picture shows the ends of a rollout's episodes and, as arrows, where the next update's step will move them.

``python examples/transport_field.py [--output transport_field.png] [--seed 0]``
"""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from stable_baselines3.common.env_util import make_vec_env
from torch.nn.utils import parameters_to_vector

from sb3_wng import WNPG
from sb3_wng.algorithms.behavior_samples import BehaviorSampler
from sb3_wng.algorithms.rollouts import flat_rewards
from sb3_wng.behavior import PerTrajectory, Trajectory
from sb3_wng.geometry import transport_field

GOAL = np.array([1.5, 1.0])
EPISODE = 16
STAGES = (0, 8, 22)  # updates before each panel
N_ENVS, N_STEPS = 4, 128 * EPISODE
N_BASIS = 10  # a smooth field; more would follow the noise of the scores
LONGEST = 0.4  # arrow; the factor is in the title


class Plane(gym.Env):
    """Move by at most 0.15 per step and direction; the reward is minus the distance to the goal."""

    observation_space = gym.spaces.Box(-4, 4, (2,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = np.zeros(2), 0
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position, self.time = self.position + 0.15 * action, self.time + 1
        reward = -np.linalg.norm(self.position - GOAL)
        return self.position.astype(np.float32), float(reward), self.time == EPISODE, False, {}


def final_position(trajectory: Trajectory) -> torch.Tensor:
    return trajectory.observations[-1]


def step_and_field(model: WNPG, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Update once; where the rollout's episodes ended, their returns, and how the step moves ``points`` of that plane."""
    before = [parameter.detach().clone() for parameter in model.actor_parameters]
    model.learn(N_ENVS * N_STEPS, reset_num_timesteps=False)
    after = [parameter.detach().clone() for parameter in model.actor_parameters]
    set_parameters(model, before)  # behaviour is that of the policy which collected the rollout
    sampler = BehaviorSampler(
        model.policy, model.actor_parameters, model.observation_space, model.action_space, torch.Generator().manual_seed(0)
    )
    sample = sampler.trajectories(model.rollout_buffer, PerTrajectory(final_position), EPISODE, flat_rewards(model))
    step = parameters_to_vector(after) - parameters_to_vector(before)
    field = transport_field(sample, step, torch.from_numpy(points), N_BASIS, generator=torch.Generator().manual_seed(0))
    set_parameters(model, after)
    returns = model.rollout_buffer.rewards.T.reshape(-1, EPISODE).sum(axis=1)  # every episode is as long
    return sample.embeddings.numpy(), returns, field.numpy()


def set_parameters(model: WNPG, values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.actor_parameters, values, strict=True):
            parameter.copy_(value)


def draw(axes: Axes, ends: np.ndarray, returns: np.ndarray, points: np.ndarray, field: np.ndarray) -> PathCollection:
    """Ends of episodes by return, and arrows where there are any nearby."""
    near = np.sort(np.linalg.norm(points[:, None] - ends, axis=2), axis=1)[:, 5] < 0.2
    magnified = LONGEST / np.linalg.norm(field[near], axis=1).max()
    dots = axes.scatter(*ends.T, c=returns, s=16, cmap="viridis", vmin=-36, vmax=-12, alpha=0.75, linewidths=0)
    arrows = {"color": "black", "width": 0.006, "angles": "xy", "scale_units": "xy", "scale": 1 / magnified}
    axes.quiver(*points[near].T, *field[near].T, **arrows)
    axes.plot(*GOAL, marker="*", markersize=16, color="crimson", markeredgecolor="white", linestyle="none")
    axes.plot(0, 0, marker="o", markersize=7, color="white", markeredgecolor="crimson", linestyle="none")
    axes.set(xlabel="x at the end of an episode", aspect="equal")
    axes.set_title(f"mean return {returns.mean():.0f}, transport × {magnified:.0f}", loc="right", fontsize=10)
    return dots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("transport_field.png"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    behavior = {"metric": "kernel", "embedding": final_position, "embedding_horizon": EPISODE, "n_basis": N_BASIS}
    env = make_vec_env(Plane, N_ENVS, seed=args.seed)
    model = WNPG("MlpPolicy", env, n_steps=N_STEPS, seed=args.seed, device="cpu", **behavior)
    points = np.stack(np.meshgrid(np.arange(-2, 3.6, 0.2), np.arange(-2, 3.1, 0.2)), axis=-1).reshape(-1, 2)
    figure, panels = plt.subplots(1, len(STAGES), figsize=(13, 4.4), layout="constrained", sharex=True, sharey=True)
    updates = 0
    for stage, axes in zip(STAGES, panels, strict=True):
        if stage > updates:
            model.learn((stage - updates) * N_ENVS * N_STEPS, reset_num_timesteps=False)
        ends, returns, field = step_and_field(model, points)
        dots = draw(axes, ends, returns, points, field)
        axes.set_title(f"Update {stage + 1}", loc="left", fontweight="bold")
        updates = stage + 1
    panels[0].set(xlim=(-1.4, 2.4), ylim=(-1.5, 2.3))
    panels[0].set_ylabel("y at the end of an episode")
    figure.colorbar(dots, ax=panels, label="return of the episode", extend="both", shrink=0.85)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110, metadata={"Software": None})
    print(f"Saved {args.output}")


if __name__ == "__main__":
    main()
