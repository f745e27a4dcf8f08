"""What a metric calls near, and where steps of a fixed rate lead: the picture of the page on theory.

    pip install -e ".[plots]" && python examples/three_metrics.py

Policies are Gaussians N(mean, std^2) of one action, the best one is deterministic. Left: all policies at the same distance
from a few. Right: twelve steps of a fixed rate on J = -(mean - 1)^2 - std^2.

``python examples/three_metrics.py [--output three_metrics.png]``
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from sb3_wng.geometry import GaussianLaw

BEST = 1.0
RADIUS = 0.12
N_STEPS = 12
RATE = 0.12
COLOURS = {"Euclidean (mean, log std)": "0.45", "Fisher": "tab:blue", "Wasserstein": "tab:red"}


def law(mean: float, std: float) -> GaussianLaw:
    return GaussianLaw(torch.tensor([[mean]]), torch.tensor([[std]]))


def tensor(product: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The metric in the coordinates (mean, std), shape (2, 2)."""
    return torch.cat([product(row[None]) for row in torch.eye(2)]).numpy()


def metrics(mean: float, std: float) -> dict[str, np.ndarray]:
    """Each metric at a policy; networks give the logarithm of the standard deviation, whose change is d std / std."""
    here = law(mean, std)
    tensors = [np.diag([1.0, std**-2]), tensor(here.fisher_product), tensor(here.wasserstein_product)]
    return dict(zip(COLOURS, tensors, strict=True))


def circle(mean: float, std: float, name: str) -> np.ndarray:
    """Points at the distance RADIUS, shape (100, 2)."""
    angles = np.linspace(0, 2 * np.pi, 100)
    root = np.linalg.inv(np.linalg.cholesky(metrics(mean, std)[name])).T
    return np.array([mean, std]) + RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1) @ root.T


def path(name: str, mean: float, std: float) -> np.ndarray:
    """Where natural gradient steps of a fixed rate lead, shape (N_STEPS + 1, 2)."""
    points = [np.array([mean, std])]
    for _ in range(N_STEPS):
        mean, std = points[-1]
        gradient = np.array([-2 * (mean - BEST), -2 * std])
        step = RATE * np.linalg.solve(metrics(mean, std)[name], gradient)
        points.append(np.array([mean + step[0], std * np.exp(step[1] / std)]))  # in log std, as networks move
    return np.array(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("three_metrics.png"))
    output = parser.parse_args().output
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for name, colour in COLOURS.items():
        for mean in (-1.0, 0.0, 1.0):
            for std in (0.15, 0.45, 0.9):
                left.plot(*circle(mean, std, name).T, color=colour, linewidth=1.4)
        left.plot([], [], color=colour, label=name)
        right.plot(*path(name, -1.0, 0.9).T, "o-", color=colour, markersize=3.5, linewidth=1.2, label=name)
    right.plot(BEST, 0, "*", color="black", markersize=13, clip_on=False, zorder=3)
    left.set(xlim=(-1.3, 1.3), title="policies at the same distance")
    right.set(xlim=(-1.2, 1.2), title=f"{N_STEPS} steps of the same rate; star: the best policy")
    left.set_aspect("equal")
    for axes in (left, right):
        axes.set(ylim=(0, 1.1), xlabel="mean of the action", ylabel="standard deviation")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    print(f"Saved {output}")


if __name__ == "__main__":
    main()
