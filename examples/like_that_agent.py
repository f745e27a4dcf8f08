"""Walk like that agent, or unlike it: one trained agent as reference of two others, on a PyBullet robot.

    pip install -e ".[envs,benchmarks]" && python examples/like_that_agent.py

Trains PPO, then BGPG three times: attracted to PPO's behaviour, indifferent, and repelled from it. Behaviour is the mean
of the robot's observation over windows of 32 steps. Prints returns and distances, and draws the three clouds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pybullet_envs_gymnasium  # noqa: F401  # registers the robots
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import BGPG
from sb3_wng.behavior import StateVisitation, Trajectories, collect_trajectories
from sb3_wng.behavior.callbacks import project, squared_wasserstein_distance

COEFFICIENTS = {"attracted": 1.0, "indifferent": 0.0, "repelled": -0.3}


def make_env(env_id: str, seed: int) -> VecNormalize:
    return VecNormalize(make_vec_env(env_id, n_envs=2, seed=seed), gamma=0.99)


def describe(trajectories: Trajectories) -> torch.Tensor:
    return StateVisitation()(trajectories).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="HalfCheetahBulletEnv-v0")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/like_that_agent.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    agent = PPO("MlpPolicy", make_env(arguments.env, arguments.seed), seed=arguments.seed, device="cpu")
    agent.learn(arguments.steps)
    demonstrations = collect_trajectories(agent, n_steps=4096)
    clouds = {"the agent": describe(demonstrations)}
    returns = {"the agent": mean_return(agent)}
    guidance = {"distance": "sinkhorn", "embedding": "state_visitation", "reference": demonstrations}
    for name, coefficient in COEFFICIENTS.items():
        model = BGPG(
            "MlpPolicy",
            make_env(arguments.env, arguments.seed + 1),
            n_steps=1024,
            wasserstein_coef=coefficient,
            **(guidance if coefficient else {}),
            target_kl=0.03,
            seed=arguments.seed + 1,
            device="cpu",
        ).learn(arguments.steps)
        clouds[name] = describe(collect_trajectories(model, n_steps=4096))
        returns[name] = mean_return(model)
    for name, cloud in clouds.items():
        distance = squared_wasserstein_distance(cloud, clouds["the agent"])
        print(f"{name:12} return {returns[name]:7.1f}, distance from the agent {distance:.3f}")
    draw(clouds, arguments.output)


def mean_return(model: PPO | BGPG) -> float:
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    env.training, env.norm_reward = False, False
    return float(np.mean(evaluate_policy(model, env, n_eval_episodes=5)[0]))


def draw(clouds: dict[str, torch.Tensor], path: Path) -> None:
    placed, names = project(list(clouds.values()))
    figure = Figure(figsize=(6.4, 4.8), dpi=130, layout="constrained")
    axes = figure.add_subplot(xlabel=names[0], ylabel=names[1], title="Windows of 32 steps: mean observations")
    colours = ("0.55", "tab:green", "tab:blue", "tab:red")
    for label, points, colour in zip(clouds, placed, colours, strict=True):
        axes.scatter(*points.T.numpy(), s=12, alpha=0.7, color=colour, label=label)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"Saved {path}")


if __name__ == "__main__":
    main()
