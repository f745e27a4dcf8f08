"""Acting for several parameter vectors of one policy at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_wng.algorithms.observation_normalizer import CLIP

if TYPE_CHECKING:
    from sb3_wng.algorithms.evolution_policies import EvolutionPolicy


class Actor(Protocol):
    """Row b of every batch belongs to parameter vector b; its action depends on that row alone, to the last bit."""

    def __call__(self, observations: Any, generators: Sequence[np.random.Generator]) -> NDArray[Any]:
        """Actions (B, ...) that the environment takes.

        :param observations: B observations, or a dict of them
        :param generators: of the policies' own noise, one per row
        """


ACTIVATIONS: dict[type[nn.Module], Any] = {nn.Tanh: np.tanh, nn.ReLU: lambda x: np.maximum(x, 0), nn.Identity: lambda x: x}


def is_plain(policy: EvolutionPolicy) -> bool:
    """Whether :class:`NumpyActor` computes what the policy's ``forward`` does."""
    return (
        type(policy).forward is _base_forward()
        and type(policy.features_extractor) is FlattenExtractor
        and isinstance(policy.observation_space, spaces.Box)
        and not is_image_space(policy.observation_space)
        and type(policy.activation) in ACTIVATIONS
    )


def _base_forward() -> Any:
    from sb3_wng.algorithms.evolution_policies import EvolutionPolicy

    return EvolutionPolicy.forward


class NumpyActor:
    """Fully connected layers on flat observations: one matrix-vector product per row and layer.

    :param policy: a plain one, see :func:`is_plain`
    :param parameters: shape (B, p)
    """

    def __init__(self, policy: EvolutionPolicy, parameters: NDArray[np.float32]) -> None:
        self._policy = policy
        self._activation = ACTIVATIONS[type(policy.activation)]
        values = {name: parameter.detach().cpu().numpy()[None] for name, parameter in policy.named_parameters()}
        values.update(_split(policy, parameters))
        self._layers = []
        for i, layer in enumerate(policy.layers):
            weight = values[f"layers.{i}.weight"]
            if weight.ndim == 2:  # Toeplitz
                weight = weight[:, layer.get_buffer("index").cpu().numpy()]
            bias = values.get(f"layers.{i}.bias")
            self._layers.append((np.ascontiguousarray(weight), bias))
        statistics = policy.normalizer.statistics().get("")
        self._statistics = None if statistics is None else statistics.astype(np.float32)

    def __call__(self, observations: Any, generators: Sequence[np.random.Generator]) -> NDArray[Any]:
        policy = self._policy
        x = observations.reshape(len(observations), -1).astype(np.float32)
        if self._statistics is not None:
            x = np.clip((x - self._statistics[0]) / self._statistics[1], -CLIP, CLIP)
        if policy.noise_dim > 0:
            x = np.concatenate([x, draw(generators, policy.noise_dim)], axis=1)
        for i, (weight, bias) in enumerate(self._layers):
            x = np.matmul(weight, x[:, :, None])[:, :, 0]
            if bias is not None:
                x = x + bias
            if i < len(self._layers) - 1:
                x = self._activation(x)
        return finish(policy, np.tanh(x) if policy.squash_output else x, generators)


class TorchActor:
    """Any policy, one forward pass per row.

    :param policy: whose parameters are replaced for each row
    :param parameters: shape (B, p)
    """

    def __init__(self, policy: EvolutionPolicy, parameters: NDArray[np.float32]) -> None:
        self._policy = policy
        policy.set_training_mode(False)
        # each row has its own memory: the last bit of a product may depend on how its operands are aligned
        parts = _split(policy, parameters)
        self._rows = [
            {name: th.tensor(part[b], device=policy.device) for name, part in parts.items()} for b in range(len(parameters))
        ]

    @th.no_grad()
    def __call__(self, observations: Any, generators: Sequence[np.random.Generator]) -> NDArray[Any]:
        policy = self._policy
        tensors = obs_as_tensor(observations, policy.device)
        noise = None
        if policy.noise_dim > 0:
            noise = th.as_tensor(draw(generators, policy.noise_dim), device=policy.device)
        outputs = []
        for b, values in enumerate(self._rows):
            one = (
                {key: part[b : b + 1].clone() for key, part in tensors.items()}
                if isinstance(tensors, dict)
                else tensors[b : b + 1].clone()
            )
            arguments = (one,) if noise is None else (one, noise[b : b + 1].clone())
            outputs.append(th.func.functional_call(policy, values, arguments))
        return finish(policy, th.cat(outputs).cpu().numpy(), generators)


def draw(generators: Sequence[np.random.Generator], size: int) -> NDArray[np.float32]:
    """Standard normal numbers (B, size), row b from generator b."""
    if len(generators) == 1:
        return generators[0].standard_normal((1, size), dtype=np.float32)
    return np.stack([generator.standard_normal(size, dtype=np.float32) for generator in generators])


def finish(policy: EvolutionPolicy, outputs: NDArray[np.float32], generators: Sequence[np.random.Generator]) -> NDArray[Any]:
    """Actions from outputs (B, n_outputs), with the policy's action noise."""
    if policy.action_noise_std > 0:
        outputs = outputs + np.float32(policy.action_noise_std) * draw(generators, outputs.shape[1])
    return policy.to_actions(outputs)


def _split(policy: EvolutionPolicy, parameters: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Vectors (B, p) as one array (B, ...) per trained parameter of the policy, by name."""
    shapes = {name: tuple(parameter.shape) for name, parameter in policy.trained.items()}
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    pieces = np.split(np.asarray(parameters, dtype=np.float32), ends[:-1], axis=1)
    return {name: part.reshape(len(parameters), *shapes[name]) for name, part in zip(shapes, pieces, strict=True)}
