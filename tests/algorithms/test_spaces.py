"""Whatever spaces, policies and environment wrappers SB3 supports, and the geometry of each of its action laws."""

import multiprocessing

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    kl_divergence,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_wng import WNPG
from sb3_wng.algorithms.action_laws import action_law

ACTION_SPACES = {
    "box": spaces.Box(-1, 1, (2,)),
    "float64 box": spaces.Box(-1, 1, (2,), dtype=np.float64),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
OBSERVATION_SPACES = {
    "float64 box": spaces.Box(-1, 1, (3,), dtype=np.float64),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
IDENTITIES = {
    "discrete": lambda: IdentityEnv(3),
    "box": IdentityEnvBox,
    "multi-discrete": lambda: IdentityEnvMultiDiscrete(3),
    "multi-binary": lambda: IdentityEnvMultiBinary(3),
}
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}


def parametrize(argument, table):
    return pytest.mark.parametrize(argument, table.values(), ids=table.keys())


def check_that_it_trains(model):
    """Actor and critic change, no step is skipped, and the actions are actions."""
    parts = {"actor": model.actor_parameters, "critic": model.critic_parameters}
    before = {part: [q.detach().clone() for q in parameters] for part, parameters in parts.items()}
    model.learn(2 * model.n_steps * model.n_envs)
    for part, parameters in parts.items():
        assert all(torch.isfinite(q).all() for q in parameters)
        assert not all(torch.equal(q, p) for q, p in zip(parameters, before[part], strict=True)), part
    assert model.natural_gradient.n_skipped == 0
    actions, _ = model.predict(model.env.reset())
    assert len(actions) == model.n_envs
    assert all(model.action_space.contains(action) for action in actions)


@parametrize("action_space", ACTION_SPACES)
def test_every_action_space_trains(build, chase, action_space):
    check_that_it_trains(build(chase(action_space)))


@parametrize("observation_space", OBSERVATION_SPACES)
def test_every_observation_space_trains(build, chase, observation_space):
    check_that_it_trains(build(chase(observation_space=observation_space)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_boxes_as_wide_as_numbers_go_train(build, chase, dtype):
    env, bound = chase(observation_space=spaces.Box(-1, 1, (10,), dtype=dtype)), np.finfo(dtype).max
    env = TransformObservation(env, lambda observation: observation, spaces.Box(-bound, bound, (10,), dtype=dtype))
    check_that_it_trains(build(env, policy_kwargs={"activation_fn": torch.nn.ReLU}))


@parametrize("env", IDENTITIES)
def test_sb3s_identity_environments_train(build, env):
    check_that_it_trains(build(env()))


@pytest.mark.parametrize("discrete_actions", [True, False])
def test_dictionaries_of_images_and_vectors_train(build, discrete_actions):
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=discrete_actions)
    check_that_it_trains(build(env, "MultiInputPolicy", {"features_extractor_kwargs": {"cnn_output_dim": 8}}))


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("channel_first", [True, False])
def test_images_train(build, share_features_extractor, channel_first):
    env = FakeImageEnv(3, screen_height=36, screen_width=36, channel_first=channel_first)
    kwargs = {**SMALL_CNN, "share_features_extractor": share_features_extractor}
    check_that_it_trains(build(env, "CnnPolicy", kwargs))


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action_space", ["box", "discrete", "multi-binary"])
def test_several_environments_train(build, chase, n_envs, action_space):
    env = make_vec_env(lambda: chase(ACTION_SPACES[action_space]), n_envs=n_envs)
    check_that_it_trains(build(env, n_steps=16, batch_size=16))


@pytest.mark.parametrize("squash_output", [False, True])
@pytest.mark.parametrize("sde_sample_freq", [-1, 4])
def test_state_dependent_exploration_trains(build, chase, squash_output, sde_sample_freq):
    env = chase(spaces.Box(np.float32([-3, 0]), np.float32([-1, 2])))
    kwargs = {"squash_output": squash_output}
    check_that_it_trains(build(env, policy_kwargs=kwargs, use_sde=True, sde_sample_freq=sde_sample_freq))


def test_normalised_observations_and_rewards_train(build, chase):
    check_that_it_trains(build(VecNormalize(make_vec_env(chase, n_envs=2))))


def test_stacked_frames_train(build):
    env = make_vec_env(lambda: FakeImageEnv(3, screen_height=36, screen_width=36), n_envs=2)
    check_that_it_trains(build(VecFrameStack(env, 4), "CnnPolicy", SMALL_CNN, n_steps=16))


def test_environments_in_processes_of_their_own_train(build, chase):
    # the default starts a fresh interpreter per environment, which imports torch again
    start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    kwargs = {"start_method": start_method}
    env = make_vec_env(chase, n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=kwargs)
    try:
        check_that_it_trains(build(env, n_steps=16))
    finally:
        env.close()


def random_distribution(name: str, seed: int) -> Distribution:
    """An SB3 distribution at five states, with parameters that differ from state to state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    if name == "gaussian":
        return DiagGaussianDistribution(3).proba_distribution(normal(5, 3), 0.3 * normal(5, 3))
    if name == "squashed gaussian":
        return SquashedDiagGaussianDistribution(3).proba_distribution(normal(5, 3), 0.3 * normal(5, 3))
    if name in ("gsde", "squashed gsde"):
        distribution = StateDependentNoiseDistribution(3, squash_output=name.startswith("squashed"))
        distribution.proba_distribution_net(latent_dim=4, latent_sde_dim=4)
        return distribution.proba_distribution(normal(5, 3), 0.3 * normal(4, 3), normal(5, 4))
    if name == "categorical":
        return CategoricalDistribution(4).proba_distribution(normal(5, 4))
    if name == "multi-categorical":
        return MultiCategoricalDistribution([2, 4]).proba_distribution(normal(5, 6))
    assert name == "bernoulli"
    return BernoulliDistribution(3).proba_distribution(normal(5, 3))


DISTRIBUTIONS = [
    "gaussian",
    "squashed gaussian",
    "gsde",
    "squashed gsde",
    "categorical",
    "multi-categorical",
    "bernoulli",
]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_action_laws_have_the_kl_divergence_of_their_distribution(name):
    here, there = random_distribution(name, 1), random_distribution(name, 2)
    expected = kl_divergence(here, there).reshape(5, -1).sum(dim=1)  # SB3 keeps some action dimensions apart
    actual = action_law(here).kl_divergence(action_law(there))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(action_law(here).kl_divergence(action_law(here)), torch.zeros(5), rtol=0, atol=1e-6)


def test_bernoulli_laws_are_normalised_pairs_of_log_probabilities():
    distribution = random_distribution("bernoulli", 1)
    law = action_law(distribution)
    pairs = law.coordinates.exp().reshape(5, 3, 2)
    torch.testing.assert_close(pairs.sum(dim=2), torch.ones(5, 3))
    torch.testing.assert_close(pairs[:, :, 1], distribution.distribution.probs)
    extreme = action_law(BernoulliDistribution(2).proba_distribution(torch.tensor([[200.0, -200.0]])))
    assert torch.isfinite(extreme.coordinates).all()


def test_laws_of_squashed_actions_are_those_before_squashing():
    mean, log_std = torch.randn(5, 3), torch.zeros(3)
    squashed = action_law(SquashedDiagGaussianDistribution(3).proba_distribution(mean, log_std))
    torch.testing.assert_close(squashed.mean, mean)
    torch.testing.assert_close(squashed.std, torch.ones(5, 3))


def test_laws_of_state_dependent_exploration_spread_with_the_state():
    distribution = StateDependentNoiseDistribution(2)
    distribution.proba_distribution_net(latent_dim=3, latent_sde_dim=3)
    latent, log_std = torch.randn(5, 3), torch.randn(3, 2)
    law = action_law(distribution.proba_distribution(torch.zeros(5, 2), log_std, latent))
    expected = (latent.square() @ log_std.exp().square()).sqrt()  # of latent @ noise, with noise ~ N(0, std^2)
    torch.testing.assert_close(law.std, expected, rtol=1e-4, atol=1e-4)


def test_laws_outlive_the_next_state_of_the_distribution_they_came_from(small):
    model = small(WNPG, "Pendulum-v1")
    one, two = torch.zeros(1, 3), torch.ones(1, 3)
    law = model.action_law(one)
    before = law.coordinates.detach().clone()
    assert not torch.equal(model.action_law(two).coordinates, before)
    torch.testing.assert_close(law.coordinates.detach(), before, rtol=0, atol=0)


def test_distributions_without_a_closed_form_are_refused_by_name():
    class Mixture(Distribution):
        distribution = None
        proba_distribution_net = proba_distribution = log_prob = entropy = sample = mode = None
        actions_from_params = log_prob_from_params = None

    with pytest.raises(ValueError, match=r"policy.*Mixture"):
        action_law(Mixture())
