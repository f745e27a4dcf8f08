"""Recording of behaviour while any SB3 algorithm trains: embeddings of its rollouts, and how far they move."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from sb3_wng.behavior.embeddings import EMBEDDINGS, BehaviorEmbedding, make_embedding, spread
from sb3_wng.behavior.spaces import environment_major, environment_major_observations, flat_actions, flat_observations
from sb3_wng.behavior.trajectories import Trajectories, Trajectory, Windows, cut_windows

OFF_POLICY_STEPS = 2048  # PPO's rollout
FEW_WINDOWS = 16


class Step(NamedTuple):
    """One step of all environments."""

    observations: NDArray[Any] | dict[str, NDArray[Any]]  # (n_envs, ...), before the action
    actions: NDArray[Any]  # (n_envs, ...), as the environments got them
    rewards: NDArray[Any]  # (n_envs,)
    episode_starts: NDArray[np.bool_]  # (n_envs,)


class BehaviorCallback(BaseCallback):
    """Records, rollout by rollout, where an algorithm's behaviour is in the space of an embedding, and how far it moves.

    For every algorithm that is an ``OnPolicyAlgorithm`` or an ``OffPolicyAlgorithm``, with any environments that it takes.
    It observes only: training with it and without it are the same, number for number.

    Observations and rewards are those that the algorithm sees (normalised by ``VecNormalize`` if there is one), actions
    those that the environment gets. A distance is the squared 2-Wasserstein distance between empirical laws of windows,
    in squared units of the embedding; between finite samples it is positive also where the policy did not change.

    Logged: ``behavior/distance_to_previous`` (from the second rollout on), ``behavior/distance_to_reference`` (with a
    reference), ``behavior/spread`` (total variance of the embeddings), ``behavior/n_windows`` (how many there are).

    :param embedding: an alias (``EMBEDDINGS``), a :class:`BehaviorEmbedding` or a function of one :class:`Trajectory`
    :param embedding_horizon: steps of a window, at most; windows end with their episode
    :param every_n_steps: steps, over all environments, that make up a rollout. ``None``: on-policy each of the algorithm's
        own rollouts, off-policy 2048. On-policy, whole rollouts are put together until there are at least so many steps.
    :param reference: embeddings of shape (m, d) to measure the distance from: a demonstration's, another run's
    :param plot_dir: folder for PNG figures; figures also go to TensorBoard if the algorithm logs to it
    :param plot_every: rollouts from one figure to the next; ``plot_dir`` also gets the last one. ``None``: no figures.
    :param max_windows: at most so many windows of a rollout are embedded, drawn at random; bounds time and memory
    :param verbose: 1 to print the path of each figure

    :ivar embeddings: those of the last rollout, shape (n, d), or ``None``
    :ivar distances: (num_timesteps, distance to the previous rollout) for each rollout from the second on
    """

    def __init__(
        self,
        embedding: str | BehaviorEmbedding | Callable[[Trajectory], Any] = "final_state",
        embedding_horizon: int = 32,
        every_n_steps: int | None = None,
        reference: ArrayLike | Tensor | None = None,
        plot_dir: str | os.PathLike[str] | None = None,
        plot_every: int | None = 10,
        max_windows: int = 512,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        _check_integers(
            embedding_horizon=embedding_horizon, every_n_steps=every_n_steps, plot_every=plot_every, max_windows=max_windows
        )
        if plot_dir is not None and plot_every is not None and not _has_matplotlib():
            raise ImportError("plot_dir needs matplotlib: pip install 'sb3-wng[plots]'")
        self.embedding = make_embedding(embedding)
        self.embedding_name = embedding if isinstance(embedding, str) else _name(self.embedding)
        self.embedding_horizon = embedding_horizon
        self.every_n_steps = every_n_steps
        self.reference = None if reference is None else _check_reference(reference)
        self.plot_dir = None if plot_dir is None else Path(plot_dir)
        self.plot_every = plot_every
        self.max_windows = max_windows
        self._has_warned = False
        self._reset(n_envs=0)

    def _reset(self, n_envs: int) -> None:
        self.embeddings: Tensor | None = None
        self.distances: list[tuple[int, float]] = []
        self.n_rollouts = 0
        self._n_envs = n_envs
        self._generator = torch.Generator().manual_seed(0)
        self._steps: list[Step] = []
        self._executed: list[tuple[NDArray[Any], NDArray[Any]]] = []  # actions and rewards of the current rollout
        self._previous: Tensor | None = None
        self._returns = torch.empty(0)
        self._recorded_at = self._plotted_at = 0  # num_timesteps

    def _on_training_start(self) -> None:
        if not isinstance(self.model, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
            raise ValueError(
                "BehaviorCallback records algorithms that are an OnPolicyAlgorithm or an OffPolicyAlgorithm, "
                f"{type(self.model).__name__} is neither"
            )
        self._refuse_parent()  # again: a list between has none before training
        if self.num_timesteps == 0 or self.training_env.num_envs != self._n_envs:
            self._reset(self.training_env.num_envs)
        self._episode_starts = np.ones(self._n_envs, dtype=bool)
        self._is_resumed = True  # what came before is another training's, even where its episode goes on
        if self.reference is not None and type(self.embedding) in EMBEDDINGS.values():
            self._check_dimension(self._embed(self._blank_trajectory()))
        if self.plot_dir is not None and self.plot_every is not None:
            self.plot_dir.mkdir(parents=True, exist_ok=True)
        self._logs_figures = self._has_figure_log()

    def _init_callback(self) -> None:
        self._refuse_parent()

    def _refuse_parent(self) -> None:
        if isinstance(self.parent, EventCallback):
            raise ValueError(
                f"BehaviorCallback must see every step: give it to learn(), alone or in a list, not to {_name(self.parent)}"
            )

    def _on_rollout_start(self) -> None:
        self._executed.clear()

    def _on_step(self) -> bool:
        # Before the algorithm goes on: a rollout buffer has the value of what follows in the rewards of truncated episodes
        actions, rewards = self.locals.get("clipped_actions", self.locals["actions"]), self.locals["rewards"]
        self._executed.append((np.array(actions), np.array(rewards)))
        if isinstance(self.model, OffPolicyAlgorithm):
            # Still the observation that the action was chosen for
            self._add_step(deepcopy(self.model._last_obs), *self._executed.pop(), self._episode_starts)
            self._episode_starts = np.array(self.locals["dones"], dtype=bool)
            self._close_if_due(self.every_n_steps or OFF_POLICY_STEPS)
        return True

    def _on_rollout_end(self) -> None:
        if isinstance(self.model, OnPolicyAlgorithm):
            buffer = self.model.rollout_buffer
            for i, (actions, rewards) in enumerate(self._executed):
                observations: Any = buffer.observations
                row = (
                    {key: array[i] for key, array in observations.items()}
                    if isinstance(observations, dict)
                    else observations[i]
                )
                self._add_step(row, actions, rewards, buffer.episode_starts[i].astype(bool))
            self._close_if_due(self.every_n_steps or 0)

    def _on_training_end(self) -> None:
        if self.n_rollouts == 0 and self._steps:
            warnings.warn(
                f"BehaviorCallback has recorded nothing in {len(self._steps) * self._n_envs} steps: every_n_steps is "
                f"{self.every_n_steps or OFF_POLICY_STEPS}, lower it",
                stacklevel=2,
            )
        if self.plot_dir is not None and self.plot_every is not None and self._plotted_at < self._recorded_at:
            self._save_figure(self.plot_dir)

    def _add_step(
        self, observations: Any, actions: NDArray[Any], rewards: NDArray[Any], episode_starts: NDArray[np.bool_]
    ) -> None:
        if self._is_resumed:
            episode_starts = np.ones_like(episode_starts)
            self._is_resumed = False
        self._steps.append(Step(observations, actions, rewards, episode_starts))

    def _close_if_due(self, n_steps: int) -> None:
        if len(self._steps) * self._n_envs >= n_steps:
            steps, self._steps = self._steps, []
            with torch.no_grad():
                self._record(self._sample(steps))

    def _sample(self, steps: Sequence[Step]) -> Trajectories:
        """At most ``max_windows`` windows of the steps; only their observations are converted."""
        windows = cut_windows(np.stack([step.episode_starts for step in steps]), self.embedding_horizon)
        chosen = torch.randperm(len(windows.mask), generator=self._generator)[: self.max_windows].sort().values
        mask = windows.mask[chosen]
        rows = windows.index[chosen][mask].numpy()
        index = torch.zeros_like(mask, dtype=torch.long)
        index[mask] = torch.arange(len(rows))
        return Trajectories.from_steps(
            Windows(index, mask),
            flat_observations(
                environment_major_observations([step.observations for step in steps], rows), self.model.observation_space
            ),
            flat_actions(environment_major([step.actions for step in steps])[rows], self.model.action_space),
            torch.as_tensor(environment_major([step.rewards for step in steps])[rows]).float(),
        )

    def _record(self, trajectories: Trajectories) -> None:
        """Embed a rollout, log where it is, and make it the last one."""
        current = self._embed(trajectories)
        if self.reference is not None:
            self._check_dimension(current)
            self.logger.record("behavior/distance_to_reference", squared_wasserstein_distance(current, self.reference))
        self._previous, self.embeddings = self.embeddings, current
        if self._previous is not None:
            distance = squared_wasserstein_distance(self._previous, current)
            self.distances.append((self.num_timesteps, distance))
            self.logger.record("behavior/distance_to_previous", distance)
        self.logger.record("behavior/spread", spread(current))
        self.logger.record("behavior/n_windows", len(current))
        self._returns = trajectories.rewards.sum(dim=1)
        self._recorded_at = self.num_timesteps
        self.n_rollouts += 1
        if len(current) < FEW_WINDOWS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"a rollout has {len(current)} windows: distances between so few points say little. Raise every_n_steps "
                f"({self.every_n_steps}) or lower embedding_horizon ({self.embedding_horizon}).",
                stacklevel=2,
            )
        if self.plot_every is not None and self.n_rollouts % self.plot_every == 0:
            self._plot()

    def _embed(self, trajectories: Trajectories) -> Tensor:
        """:raises ValueError: naming the embedding, for points that are not finite vectors, one a window, as many as before"""
        points, name = self.embedding(trajectories), self.embedding_name
        if not torch.isfinite(points).all():
            raise ValueError(f"embedding {name!r} is not finite: NaN or infinite numbers come from env or from the embedding")
        if self.embeddings is not None and self.embeddings.shape[1] != points.shape[1]:
            raise ValueError(
                f"embedding {name!r} must return vectors of the same length for every trajectory, got "
                f"{points.shape[1]} numbers after {self.embeddings.shape[1]} in the rollout before"
            )
        return points.detach().cpu().double()

    def _blank_trajectory(self) -> Trajectories:
        """One window of zero actions at the first observation: what the built-in embeddings' dimension can be told from."""
        observation: Any = self.model._last_obs
        first = {key: array[:1] for key, array in observation.items()} if isinstance(observation, dict) else observation[:1]
        space = self.model.action_space
        mask = torch.ones(1, self.embedding_horizon, dtype=torch.bool)
        return Trajectories.from_steps(
            Windows(torch.zeros_like(mask, dtype=torch.long), mask),
            flat_observations(first, self.model.observation_space),
            flat_actions(np.zeros((1, *(space.shape or ()))), space),
            torch.zeros(1),
        )

    def _check_dimension(self, embeddings: Tensor) -> None:
        if self.reference is not None and self.reference.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"reference must be of the embedding's dimension, shape (m, {embeddings.shape[1]}) for "
                f"{self.embedding_name!r}, got {tuple(self.reference.shape)}"
            )

    def _has_figure_log(self) -> bool:
        if self.plot_every is None or not any(isinstance(f, TensorBoardOutputFormat) for f in self.logger.output_formats):
            return False
        if not _has_matplotlib():
            warnings.warn(
                "no figures of behaviour in TensorBoard without matplotlib: pip install 'sb3-wng[plots]'", stacklevel=2
            )
            return False
        return True

    def _plot(self) -> None:
        if self._logs_figures:
            figure = Figure(self._figure(), close=False)  # not pyplot's: nothing to close
            self.logger.record("behavior/embeddings", figure, exclude=("stdout", "log", "json", "csv"))
        if self.plot_dir is not None:
            self._save_figure(self.plot_dir)

    def _save_figure(self, folder: Path) -> None:
        self._plotted_at = self._recorded_at
        path = folder / f"behavior_{self._recorded_at:09d}.png"
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        self._figure().savefig(unfinished, format="png")
        os.replace(unfinished, path)
        if self.verbose >= 1:
            print(f"Saved figure of behaviour to {path}")

    def _figure(self) -> Any:
        assert self.embeddings is not None
        title = f"{self.embedding_name} of {len(self.embeddings)} windows, {self._recorded_at:,} steps"
        return draw_embeddings(self.embeddings, self._returns, self._previous, self.reference, title)


def squared_wasserstein_distance(first: Tensor, second: Tensor) -> float:
    """:math:`W_2^2` between two empirical laws: the least mean squared distance that takes one to the other.

    Exact, by the network simplex; O(n^3 log n).

    :param first: shape (n, d), of weights 1/n
    :param second: shape (m, d), of weights 1/m
    """
    import ot  # takes half a second

    centre = second.mean(dim=0)  # squared distances are differences of squared norms: keep these small
    cost = ot.dist((first - centre).numpy(), (second - centre).numpy(), metric="sqeuclidean")
    return float(ot.emd2([], [], cost, numItermax=1_000_000))


def project(groups: Sequence[Tensor]) -> tuple[list[Tensor], tuple[str, str]]:
    """Groups of points (n_i, d) in the plane, (n_i, 2), and names of its axes.

    The first two principal components of all points together; for d = 2 the points themselves, for d = 1 a row each.
    """
    if groups[0].shape[1] == 1:
        rows = [torch.cat([group, torch.full_like(group, i)], dim=1) for i, group in enumerate(groups)]
        return rows, ("embedding", "")
    if groups[0].shape[1] == 2:
        return list(groups), ("embedding, component 1", "embedding, component 2")
    points = torch.cat(list(groups))
    points = points - points.mean(dim=0)
    if points.shape[1] > len(points):  # images: an orthogonal map into fewer dimensions leaves principal components alone
        points = torch.linalg.qr(points.T, mode="r").R.T
    left, singular_values, _ = torch.linalg.svd(points, full_matrices=False)
    share = singular_values.square() / singular_values.square().sum().clamp_min(torch.finfo(points.dtype).tiny)
    scores = torch.nn.functional.pad(left * singular_values, (0, 1))[:, :2]  # a single point has one component
    names = [f"principal component {i + 1} ({part:.0%} of variance)" for i, part in enumerate([*share.tolist(), 0.0][:2])]
    return list(scores.split([len(group) for group in groups])), (names[0], names[1])


def draw_embeddings(
    current: Tensor, returns: Tensor, previous: Tensor | None = None, reference: Tensor | None = None, title: str = ""
) -> Any:
    """A matplotlib figure of a rollout's embeddings (n, d), coloured by return (n,), with those of others."""
    from matplotlib.figure import Figure as Canvas  # without pyplot, which would keep the figure and choose a backend

    sets = {"previous rollout": previous, "reference": reference, "this rollout": current}
    present = {label: points for label, points in sets.items() if points is not None}
    placed, (x_name, y_name) = project(list(present.values()))
    style: dict[str, dict[str, Any]] = {
        "previous rollout": {"color": "0.72", "s": 16, "linewidths": 0},
        "reference": {"color": "tab:red", "s": 26, "marker": "x", "linewidths": 1.0, "alpha": 0.7},
        "this rollout": {"c": returns.numpy(), "cmap": "viridis", "s": 20, "edgecolors": "white", "linewidths": 0.3},
    }
    figure = Canvas(figsize=(6.8, 4.8), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for label, points in zip(present, placed, strict=True):
        drawn = axes.scatter(*points.T.numpy(), label=label, **style[label])
    figure.colorbar(drawn, ax=axes, label="return of the window")
    if current.shape[1] == 1:
        axes.set_yticks(range(len(present)), list(present))
        axes.set_ylim(-0.5, len(present) - 0.5)
    else:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _check_reference(reference: ArrayLike | Tensor) -> Tensor:
    """:raises ValueError: for what is not a non-empty matrix of finite numbers"""
    array = reference.detach().cpu().numpy() if isinstance(reference, Tensor) else np.asarray(reference)
    if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.number):
        raise ValueError(
            f"reference must be an array of m >= 1 embeddings, of shape (m, d), got {array.dtype} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError("reference must hold finite numbers only")
    return torch.as_tensor(array, dtype=torch.float64)


def _check_integers(**values: int | None) -> None:
    """:raises ValueError: for an argument that is neither an integer of at least 1 nor, where it may be, ``None``"""
    for name, value in values.items():
        if value is None and name in ("every_n_steps", "plot_every"):
            continue
        if not (isinstance(value, (int, np.integer)) and value >= 1):
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _name(thing: object) -> str:
    return str(getattr(thing, "name", type(thing).__name__))
