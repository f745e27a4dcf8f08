"""Train WNPG on a PyBullet robot: progress bar, evaluation, saved model and a picture of the learning curve.

    pip install -e ".[envs,zoo]" && python examples/train_robot.py

``python examples/train_robot.py [--env HopperBulletEnv-v0] [--timesteps 100000] [--seed 0] [--output runs/robot]``
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pybullet_envs_gymnasium  # noqa: F401  # registers the robots
import torch
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from sb3_wng import WNPG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="HalfCheetahBulletEnv-v0")
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/robot"))
    args = parser.parse_args()
    torch.set_num_threads(1)  # networks of this size are slower on several threads
    args.output.mkdir(parents=True, exist_ok=True)

    env = VecNormalize(make_vec_env(args.env, n_envs=2, seed=args.seed, monitor_dir=str(args.output / "train")))
    eval_env = VecNormalize(make_vec_env(args.env, seed=args.seed + 1000), training=False, norm_reward=False)
    eval_freq = max(1, args.timesteps // 10 // env.num_envs)
    evaluation = EvalCallback(eval_env, eval_freq=eval_freq, n_eval_episodes=3, log_path=str(args.output), verbose=0)

    # The class's defaults fit small tasks; these are for robots (docs/guide/migration.md)
    target_kl = 0.01 * env.action_space.shape[0]
    model = WNPG("MlpPolicy", env, n_steps=512, target_kl=target_kl, std_weight=2, seed=args.seed, device="cpu")
    model.learn(args.timesteps, callback=evaluation, progress_bar=True)

    model.save(args.output / "model")
    env.save(str(args.output / "vecnormalize.pkl"))
    eval_env.obs_rms = env.obs_rms
    mean, std = evaluate_policy(model, eval_env, n_eval_episodes=10)
    draw(args.output, args.env)
    print(f"{args.env} after {args.timesteps} steps: mean return {mean:.0f} +- {std:.0f} over 10 episodes")
    print(f"Saved {args.output}/model.zip, vecnormalize.pkl and learning_curve.png")


def draw(output: Path, title: str) -> None:
    """Returns of the training episodes (with their running mean) and of the evaluations, against steps."""
    episodes = load_results(str(output / "train"))
    steps = np.cumsum(episodes["l"])
    evaluations = np.load(output / "evaluations.npz")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, episodes["r"], ".", markersize=4, alpha=0.5, label="training episodes")
    axes.plot(steps, episodes["r"].rolling(10, min_periods=1).mean(), label="mean of 10")
    axes.plot(evaluations["timesteps"], evaluations["results"].mean(axis=1), "o-", label="evaluation")
    axes.set(xlabel="environment steps", ylabel="return", title=f"WNPG on {title}")
    axes.legend()
    figure.savefig(output / "learning_curve.png", dpi=120)


if __name__ == "__main__":
    main()
