"""Draw the six small tasks, each some steps into an episode.

    pip install -e ".[plots]" && python examples/small_tasks.py

``python examples/small_tasks.py [--output small_tasks.png]``
"""

import argparse
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import sb3_wng  # noqa: F401  registers the tasks

UP, RIGHT = 0, 1
# Actions before the picture is taken
PLAYS = {
    "RllabCartPole-v0": [0.5, -0.5, 0.5],
    "RllabCartPoleSwingUp-v0": [1.0] * 6 + [-1.0] * 12,
    "RllabDoublePendulum-v0": [0.05] * 24,
    "RllabMountainCar-v0": [1.0] * 13,
    "HillGrid-v0": [RIGHT] * 4,
    "TwoGoals-v0": [[0.8, 0.6]] * 6,
}


def picture(env_id: str) -> np.ndarray:
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    for action in PLAYS[env_id]:
        env.step(action if isinstance(env.action_space, gym.spaces.Discrete) else np.ravel(action).astype(np.float32))
    return env.render()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("small_tasks.png"))
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    for axis, env_id in zip(axes.flat, PLAYS, strict=True):
        axis.imshow(picture(env_id))
        axis.set_aspect("equal", adjustable="datalim")  # panels of one size, whatever the pictures' are
        axis.set_title(env_id, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.8")
    figure.savefig(output, dpi=110)
    print(f"Saved {output}")


if __name__ == "__main__":
    main()
