"""Policies without a critic: what evolution strategies perturb."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sb3_wng.algorithms.actors import Actor, NumpyActor, TorchActor, is_plain
from sb3_wng.algorithms.observation_normalizer import ObservationNormalizer


class ToeplitzLinear(nn.Module):
    """Affine layer whose matrix is constant along its diagonals: ``n_out + n_in - 1`` weights instead of a product.

    Choromanski et al. (ICML 2018), Structured evolution with compact architectures for scalable policy optimization.

    :param in_features: n_in
    :param out_features: n_out
    :param bias: whether to add one
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # the first column, then the rest of the first row
        self.weight = nn.Parameter(th.randn(out_features + in_features - 1) / np.sqrt(in_features))
        self.bias = nn.Parameter(th.zeros(out_features)) if bias else None
        offset = th.arange(out_features)[:, None] - th.arange(in_features)
        self.register_buffer("index", th.where(offset >= 0, offset, out_features - 1 - offset), persistent=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return nn.functional.linear(x, self.weight[self.get_buffer("index")], self.bias)


class EvolutionPolicy(BasePolicy):
    """
    Policy network for evolution strategies: features extractor, fully connected layers, one output per action number.

    Box actions are the outputs, clipped to the space as SB3's Gaussian policies do (``squash_output=False``), or a tanh
    scaled to it. Discrete ones are the largest logit (of each factor), binary ones the sign.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule
    :param net_arch: Sizes of the hidden layers; 64-64 by default. Of a dict, as other policies have it, the part ``"pi"``
    :param activation_fn: Activation function of the hidden layers
    :param with_bias: Whether hidden layers have a bias
    :param output_bias: Whether the output layer has one
    :param toeplitz: Whether matrices are constant along their diagonals, see :class:`ToeplitzLinear`
    :param squash_output: Whether Box actions go through a tanh
    :param action_noise_std: Standard deviation of Gaussian noise added to Box actions (before scaling, in candidates'
        episodes and in ``predict(deterministic=False)``)
    :param noise_dim: Standard normal numbers drawn at every step that the network gets beside the features; zeros in
        ``predict(deterministic=True)``. See :class:`ImplicitPolicy`
    :param normalize_observations: Whether to standardise continuous observations by their running statistics
    :param features_extractor_class: ``None``: by the space: flatten, Nature CNN for images, both combined for dicts
    :param features_extractor_kwargs: Keyword arguments of the features extractor
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: What moves the parameters along the estimated direction; Adam by default
    :param optimizer_kwargs: Its keyword arguments without the learning rate
    :raises ValueError: for noise of an action space that has none
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        with_bias: bool = True,
        output_bias: bool = True,
        toeplitz: bool = False,
        squash_output: bool = False,
        action_noise_std: float = 0.0,
        noise_dim: int = 0,
        normalize_observations: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or default_features_extractor(observation_space),
            features_extractor_kwargs,
            squash_output=squash_output and isinstance(action_space, spaces.Box),
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        if action_noise_std < 0 or noise_dim < 0:
            raise ValueError(f"action_noise_std and noise_dim must be >= 0, got {action_noise_std} and {noise_dim}")
        if action_noise_std > 0 and not isinstance(action_space, spaces.Box):
            raise ValueError(f"action_noise_std needs a Box action space, got {action_space}")
        sizes = net_arch["pi"] if isinstance(net_arch, dict) else net_arch
        self.net_arch = [64, 64] if sizes is None else list(sizes)
        self.activation_fn = activation_fn
        self.with_bias, self.output_bias, self.toeplitz = with_bias, output_bias, toeplitz
        self.action_noise_std = action_noise_std
        self.noise_dim = noise_dim
        self.normalize_observations = normalize_observations
        self.normalizer = ObservationNormalizer(observation_space, normalize_observations)
        self.features_extractor = self.make_features_extractor()
        self.activation = activation_fn()
        self.layers = self._make_layers()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _make_layers(self) -> nn.ModuleList:
        sizes = [self.features_extractor.features_dim + self.noise_dim, *self.net_arch, self.n_outputs]
        layers = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            is_output = i == len(self.net_arch)
            bias = self.output_bias if is_output else self.with_bias
            if self.toeplitz:
                layers.append(ToeplitzLinear(n_in, n_out, bias))
                continue
            layer = nn.Linear(n_in, n_out, bias)
            # as SB3's actors: the first actions are near the middle of the space
            self.init_weights(layer, gain=0.01 if is_output else np.sqrt(2))
            layers.append(layer)
        return layers

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What strategies perturb and move, by name: frozen parameters (``requires_grad=False``) stay as they are."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def frozen(self) -> dict[str, NDArray[np.float32]]:
        """Copies of the other parameters, by name."""
        return {name: q.detach().cpu().numpy().copy() for name, q in self.named_parameters() if not q.requires_grad}

    def load_frozen(self, frozen: Mapping[str, NDArray[np.float32]]) -> None:
        """
        :param frozen: parameters that are not trained, by name; all others are
        """
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in frozen)
            if name in frozen:
                parameter.data.copy_(th.as_tensor(frozen[name]))

    def parameters_to_vector(self) -> NDArray[np.float32]:
        """The trained parameters one after the other, shape (p,)."""
        if not self.trained:
            raise ValueError("policy: all parameters are frozen (requires_grad=False), there is nothing to learn")
        vector: NDArray[np.float32] = parameters_to_vector(self.trained.values()).detach().cpu().numpy()
        return vector

    def load_from_vector(self, vector: NDArray[np.float32]) -> None:
        """
        :param vector: of the trained parameters, shape (p,); they will be views of it on the CPU
        :raises ValueError: for another number of them
        """
        n_trained = sum(parameter.numel() for parameter in self.trained.values())
        if np.shape(vector) != (n_trained,):
            raise ValueError(f"vector must have the {n_trained} trained parameters, got shape {np.shape(vector)}")
        vector_to_parameters(th.as_tensor(vector, dtype=th.float, device=self.device), self.trained.values())

    @property
    def n_outputs(self) -> int:
        """Numbers that the network returns for one observation."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return int(space.n)
        if isinstance(space, spaces.MultiDiscrete):
            return int(space.nvec.sum())
        assert space.shape is not None
        return int(np.prod(space.shape))

    def forward(self, obs: PyTorchObs, noise: th.Tensor | None = None) -> th.Tensor:
        """Outputs (n, n_outputs), squashed if asked for, before they are turned into actions.

        :param obs: n observations
        :param noise: input noise (n, noise_dim); zeros if ``None``
        """
        preprocessed = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        x = self.features_extractor(self.normalizer(preprocessed))
        if self.noise_dim > 0:
            x = th.cat([x, x.new_zeros(len(x), self.noise_dim) if noise is None else noise], dim=1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        x = self.layers[-1](x)
        return th.tanh(x) if self.squash_output else x

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        noise = None
        if self.noise_dim > 0 and not deterministic:
            first = next(iter(observation.values())) if isinstance(observation, dict) else observation
            noise = th.randn(len(first), self.noise_dim, device=self.device)
        outputs = self(observation, noise)
        if self.action_noise_std > 0 and not deterministic:
            outputs = outputs + self.action_noise_std * th.randn_like(outputs)
            outputs = outputs.clamp(-1, 1) if self.squash_output else outputs
        if isinstance(self.action_space, spaces.Box):
            return outputs
        return th.as_tensor(self.to_actions(outputs.detach().cpu().numpy()))

    def to_actions(self, outputs: NDArray[np.float32]) -> NDArray[Any]:
        """Actions (n, ...) of the space from outputs (n, n_outputs); noise, if any, is already in them."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return outputs.argmax(axis=1)
        assert space.shape is not None
        if isinstance(space, spaces.MultiDiscrete):
            factors = np.split(outputs, np.cumsum(space.nvec.ravel())[:-1], axis=1)
            return np.stack([factor.argmax(axis=1) for factor in factors], axis=1).reshape(-1, *space.shape)
        actions = outputs.reshape(-1, *space.shape)
        if isinstance(space, spaces.MultiBinary):
            return (actions > 0).astype(space.dtype)
        assert isinstance(space, spaces.Box)
        low, high = space.low, space.high
        if self.squash_output:
            actions = low + 0.5 * (actions + 1) * (high - low)
        return np.minimum(np.maximum(actions, low), high)  # np.clip takes several times as long on so few numbers

    def make_actor(self, parameters: NDArray[np.float32]) -> Actor:
        """What acts for several parameter vectors (B, p) at once; outcomes of one do not depend on the others.

        Standard networks on flat observations run in NumPy, which is several times faster on such small ones; all others
        run as they are, one after the other.
        """
        return NumpyActor(self, parameters) if is_plain(self) else TorchActor(self, parameters)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,  # not needed for predicting
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            with_bias=self.with_bias,
            output_bias=self.output_bias,
            toeplitz=self.toeplitz,
            squash_output=self.squash_output,
            action_noise_std=self.action_noise_std,
            noise_dim=self.noise_dim,
            normalize_observations=self.normalize_observations,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data


class LinearPolicy(EvolutionPolicy):
    """Actions that are linear in the observation: no hidden layer, and no bias unless ``output_bias`` is set."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        output_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        if net_arch:
            raise ValueError(f"net_arch must be empty: LinearPolicy has no hidden layers, got {net_arch}; take MlpPolicy")
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], output_bias=output_bias, **kwargs)


class ToeplitzPolicy(EvolutionPolicy):
    """The papers' compact policy: Toeplitz matrices, two hidden layers of 16, tanh throughout, no bias at the output."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        output_bias: bool = False,
        toeplitz: bool = True,
        squash_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[16, 16] if net_arch is None else net_arch,
            output_bias=output_bias,
            toeplitz=toeplitz,
            squash_output=squash_output,
            **kwargs,
        )


class ImplicitPolicy(EvolutionPolicy):
    """A random policy that can be sampled but has no density: fresh noise is an input of the network at every step.

    The case in which the KL divergence and the Fisher metric are undefined and the Wasserstein metric is not (section 3.1
    of Moskovitz et al., 2021). Evolution strategies train it; policy gradients need a log-probability and cannot.

    :param noise_dim: Standard normal numbers per step, at least 1
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        noise_dim: int = 4,
        **kwargs: Any,
    ) -> None:
        if noise_dim < 1:
            raise ValueError(f"noise_dim must be >= 1, got {noise_dim}: without noise it is MlpPolicy")
        super().__init__(observation_space, action_space, lr_schedule, noise_dim=noise_dim, **kwargs)


def default_features_extractor(space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """As SB3's MlpPolicy, CnnPolicy and MultiInputPolicy have it, told by the space."""
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(space) else FlattenExtractor


# Policies that only evolution strategies can train, by alias
SPECIAL_POLICIES: dict[str, type[BasePolicy]] = {
    "LinearPolicy": LinearPolicy,
    "ToeplitzPolicy": ToeplitzPolicy,
    "ImplicitPolicy": ImplicitPolicy,
}
