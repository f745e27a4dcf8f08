"""What an evolution strategy makes of each number: seeds, noise, failures, statistics, clipping, weights."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.linalg import toeplitz
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_wng import ES, NSRES, WNES
from sb3_wng.algorithms.actors import NumpyActor, TorchActor
from sb3_wng.algorithms.episodes import run_episode
from sb3_wng.algorithms.evaluation import Outcome, noise, stack_embeddings
from sb3_wng.algorithms.evolution_policies import LinearPolicy, ToeplitzLinear
from sb3_wng.algorithms.observation_normalizer import ObservationNormalizer
from sb3_wng.behavior import make_embedding


def quiet(cls, **settings):
    model = cls("LinearPolicy", "CartPole-v1", **{"n_delta": 2, "seed": 3, **settings})
    model.set_logger(configure(None, []))
    return model


def test_every_iteration_has_episodes_and_noise_of_its_own():
    model = quiet(ES)
    first = model._generation()
    model._n_updates += 1
    second = model._generation()
    assert not {c.seed for c in first.candidates} & {c.seed for c in second.candidates}
    assert not np.array_equal(noise(first.noise_seed, 0, 8), noise(second.noise_seed, 0, 8))


def test_episodes_of_a_candidate_have_seeds_of_their_own_that_the_pair_shares():
    seeds = [c.seed for c in quiet(ES, n_episodes=3)._generation().candidates[:6]]
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3


def test_a_failed_episode_behaves_as_the_mean_of_the_others():
    known = [Outcome(1.0, 1, np.float32([value]), {}) for value in (4.0, 8.0)]
    failed = Outcome(float("nan"), 1, None, {}, "OSError")
    assert stack_embeddings([known[0], failed, known[1]]).tolist() == [[4.0], [6.0], [8.0]]


def test_novelty_alone_ignores_returns():
    fits = []
    for returns in (torch.zeros(4), torch.tensor([0.0, 9.0, -5.0, 1.0])):
        model = quiet(NSRES, novelty_weight=1.0)
        fits.append(model._fitness(returns.double(), torch.tensor([[1.0], [2.0], [3.0], [9.0], [0.0]])))
    assert torch.equal(*fits)


def test_diagonal_damping_reaches_the_direction():
    generator = torch.Generator().manual_seed(0)
    deltas, embeddings = torch.randn(6, 8, generator=generator), torch.randn(12, 3, generator=generator)
    one, other = (
        quiet(WNES, n_delta=6, n_basis=2, diagonal_damping=flag)._direction(torch.ones(8), deltas, embeddings, 0.1)
        for flag in (False, True)
    )
    assert not torch.allclose(one, other, rtol=1e-2)


def test_the_parents_return_is_logged():
    model = quiet(ES)
    generation = model._generation()
    model._update(generation, [Outcome(float(i), 1, None, {}) for i in range(5)])
    assert model.logger.name_to_value["rollout/parent_return"] == 4.0


def test_a_failed_episode_returns_what_env_failure_says():
    model = quiet(ES, env_failure=-7.0)
    failed = Outcome(float("nan"), 1, None, {}, "OSError")
    good = Outcome(2.0, 1, None, {})
    assert model._returns([failed, good, good, good, good]).tolist() == [-7.0, 2.0, 2.0, 2.0]


def test_the_optimiser_follows_the_schedule_of_its_rate():
    model = quiet(ES, learning_rate=lambda progress: 0.1 * progress)
    model._current_progress_remaining = 0.25
    before = model.policy.parameters_to_vector().copy()
    model._apply(torch.ones(8))
    np.testing.assert_allclose(model.policy.parameters_to_vector() - before, 0.025, rtol=1e-4)  # Adam's first step


def test_the_bandwidth_reaches_the_metric():
    assert quiet(WNES, n_basis=1, log_bandwidth=0.3).kernel_metric.log_bandwidth == 0.3


def test_all_episodes_enter_the_statistics():
    model = ES("MlpPolicy", "CartPole-v1", n_delta=2, seed=3, normalize_observations=True).learn(1)
    assert model.policy.normalizer.get_buffer("moments_0")[0, 0] == model.num_timesteps


class Counting(gym.Env):
    """The observation is the number of steps taken."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Discrete(2)

    def __init__(self, length=6, factor=1.0):
        self.length, self.factor = length, factor

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.factor * self.steps), 1.0, self.steps == self.length, False, {}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("horizon", [3, 6, 9])
def test_the_final_state_is_that_after_the_horizon(horizon, normalize):
    policy = ES("LinearPolicy", Counting(), normalize_observations=normalize).policy
    outcome = run_episode(policy, Counting(), 0, make_embedding("final_state"), horizon)
    assert outcome.embedding.item() == min(horizon, 6)
    assert outcome.length == 6


def test_observations_that_cannot_be_squared_fail_the_episode():
    policy = ES("LinearPolicy", Counting(), normalize_observations=True).policy
    assert "too large to be squared" in run_episode(policy, Counting(factor=1e200), 0).error


class Picky(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, features_dim=1)

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ArithmeticError("not a number")
        return x


def test_a_policy_that_refuses_what_is_no_number_is_not_at_fault():
    policy = ES("MlpPolicy", Counting(), policy_kwargs={"features_extractor_class": Picky}).policy
    outcome = run_episode(policy, Counting(factor=np.nan), 0)
    assert outcome.error
    assert not outcome.is_fatal


def test_coordinates_that_never_move_have_a_deviation():
    normalizer = ObservationNormalizer(spaces.Box(-9, 9, (2,)), True)
    normalizer.update([normalizer.moments(np.float32([[1, 5], [2, 5]]))])
    np.testing.assert_allclose(normalizer.statistics()[""], [[1.5, 5], [0.5, 0.01]])


def test_standardised_observations_are_clipped():
    policy = LinearPolicy(
        spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-np.inf, np.inf, (1,)), lambda _: 0.1, normalize_observations=True
    )
    policy.normalizer.update([policy.normalizer.moments(np.float32([[-1], [1]]))])
    policy.load_from_vector(np.ones(1, np.float32))
    far = np.float32([[1e4]])
    for actor in (NumpyActor, TorchActor):
        assert actor(policy, np.ones((1, 1), np.float32))(far, [np.random.default_rng(0)]).item() == 10
    assert policy.predict(far[0])[0].item() == 10


def test_action_noise_has_its_deviation_and_none_where_deterministic():
    wide = spaces.Box(-np.inf, np.inf, (4000,))
    policy = LinearPolicy(spaces.Box(-1, 1, (1,)), wide, lambda _: 0.1, action_noise_std=0.5)
    still = policy.predict(np.ones(1, np.float32), deterministic=True)[0]
    parameters = policy.parameters_to_vector()[None]
    played = policy.make_actor(parameters)(np.ones((1, 1), np.float32), [np.random.default_rng(0)])[0]
    assert (played - still).std() == pytest.approx(0.5, rel=0.05)
    assert (policy.predict(np.ones(1, np.float32))[0] - still).std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(policy.predict(np.ones(1, np.float32), deterministic=True)[0], still)


def test_a_toeplitz_layer_is_its_matrix():
    layer = ToeplitzLinear(4, 3, bias=False)
    weight = layer.weight.detach().numpy()
    matrix = toeplitz(weight[:3], np.concatenate([weight[:1], weight[3:]]))
    np.testing.assert_allclose(layer(torch.eye(4)).detach().numpy().T, matrix)


def test_discrete_actions_are_the_largest_logits_and_the_signs():
    box = spaces.Box(-1, 1, (1,))
    several = LinearPolicy(box, spaces.MultiDiscrete([2, 3]), lambda _: 0.1)
    outputs = np.float32([[0, 1, 5, 0, 0], [3, 1, 0, 0, 5]])
    assert several.to_actions(outputs).tolist() == [[1, 0], [0, 2]]
    binary = LinearPolicy(box, spaces.MultiBinary(3), lambda _: 0.1)
    assert binary.to_actions(np.float32([[-1, 2, -3]])).tolist() == [[0, 1, 0]]


def test_squashed_actions_with_noise_stay_in_their_space():
    space = spaces.Box(-2, 2, (500,))
    policy = LinearPolicy(spaces.Box(-1, 1, (1,)), space, lambda _: 0.1, squash_output=True, action_noise_std=2.0)
    assert space.contains(policy.predict(np.ones(1, np.float32))[0])
