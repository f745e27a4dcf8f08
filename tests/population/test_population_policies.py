"""One matrix, many SB3 policies: the same numbers from both sides, and actions as the particles' own."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_wng import SVPG
from sb3_wng.population import PopulationPolicy

ACTION_SPACES = {
    "box": spaces.Box(-1, 1, (2,)),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
parametrize_actions = pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES.keys())


def flat_actor(particle):
    return torch.cat([parameter.detach().flatten() for parameter in particle.parameters])


@parametrize_actions
def test_actors_are_views_of_the_rows(small, chase, algorithm, action_space):
    model = small(algorithm, lambda: chase(action_space))
    theta = model.policy.theta
    for row, particle in zip(theta, model.particles, strict=True):
        torch.testing.assert_close(flat_actor(particle), row, rtol=0, atol=0)
    theta[1] += 1
    torch.testing.assert_close(flat_actor(model.particles[1]), theta[1], rtol=0, atol=0)
    with torch.no_grad():
        model.particles[2].parameters[0].fill_(7)
    assert (theta[2] == 7).any()
    model.learn(2 * model.n_steps * model.n_envs)
    for row, particle in zip(model.policy.theta, model.particles, strict=True):
        torch.testing.assert_close(flat_actor(particle), row, rtol=0, atol=0)


@parametrize_actions
@pytest.mark.parametrize("net_arch", [[], [8], {"pi": [5, 4], "vf": [3]}], ids=str)
def test_the_batched_forward_is_the_particles_own(small, chase, action_space, net_arch):
    policy = small("pg", lambda: chase(action_space), policy_kwargs={"net_arch": net_arch}).policy
    policy.theta += 0.3 * torch.randn_like(policy.theta)
    observations = torch.randn(12, 3)
    assert policy.stack is not None
    outputs = policy.stack.outputs(observations)
    with torch.no_grad():
        actions, log_probs = policy(observations)
    assert actions.shape == (12, *(() if isinstance(action_space, spaces.Discrete) else (actions.shape[1],)))
    for i, (particle, rows) in enumerate(zip(policy, policy.columns(12), strict=True)):
        with torch.no_grad():
            latent = particle.mlp_extractor.forward_actor(
                particle.extract_features(observations[rows], particle.features_extractor)
            )
            distribution = particle.get_distribution(observations[rows])
            own = distribution.log_prob(actions[rows])
        torch.testing.assert_close(outputs[i], particle.action_net(latent).detach())
        torch.testing.assert_close(log_probs[rows], own)


def test_the_batched_samples_have_the_particles_mean_and_spread(small, chase):
    policy = small("pg").policy
    with torch.no_grad():
        policy.particles[1].log_std[:] = torch.tensor([-1.0, 0.5])
    observations = torch.randn(1, 3).expand(3 * 20_000, 3)
    actions, _ = policy(observations)
    with torch.no_grad():
        mean = policy.particles[1].get_distribution(observations[:1]).distribution.mean[0]
    mine = actions[20_000:40_000]
    torch.testing.assert_close(mine.mean(dim=0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(mine.std(dim=0), torch.tensor([-1.0, 0.5]).exp(), rtol=0.03, atol=0)


def test_only_plain_networks_are_stacked(small, chase):
    assert small("pg").policy.stack is not None
    assert small("pg", use_sde=True).policy.stack is None
    images = make_vec_env(lambda: FakeImageEnv(3, screen_height=36, screen_width=36), n_envs=3)
    assert small("pg", images, "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 8}}).policy.stack is None


def test_particles_start_at_different_points_that_the_seed_decides(small):
    one, same, other = (small("pg", seed=seed).policy.theta for seed in (0, 0, 1))
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_any_particle_can_act_and_the_best_does_by_default(small):
    model = small("pg")
    observation = np.ones((4, 3), np.float32)
    for returns, value in zip(model.particle_returns, [1.0, 5.0, 3.0], strict=True):
        returns.append(value)
    model.learn(model.n_steps * model.n_envs)
    best = int(np.argmax(model.mean_returns))
    assert model.policy.best == best
    by_index = [model.predict(observation, deterministic=True, particle=i)[0] for i in range(3)]
    expected = [particle.predict(observation, deterministic=True)[0] for particle in model.policy]
    np.testing.assert_array_equal(by_index, expected)
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], by_index[best])
    for particle in (3, -1):
        with pytest.raises(ValueError, match="particle must be an index from 0 to 2"):
            model.predict(observation, particle=particle)


def test_a_particle_is_an_sb3_policy_of_its_own(small, tmp_path):
    model = small("pg").learn(96)
    observations = model.env.reset()
    model.policy[1].save(tmp_path / "one")
    alone = ActorCriticPolicy.load(tmp_path / "one", device="cpu")
    expected, _ = model.predict(observations, deterministic=True, particle=1)
    np.testing.assert_array_equal(alone.predict(observations, deterministic=True)[0], expected)


@pytest.mark.parametrize(
    "policy_kwargs", [{}, {"log_std_init": 0.0, "activation_fn": torch.nn.Softplus}], ids=["stacked", "one by one"]
)
def test_observations_that_do_not_split_are_refused_with_who_acts_alone(small, policy_kwargs):
    policy = small("pg", policy_kwargs=policy_kwargs).policy
    with pytest.raises(ValueError, match=r"a population of 3 acts on a multiple of as many observations, got 4: take predict"):
        policy(torch.zeros(4, 3))


def test_actors_have_the_optimiser_that_is_given(small, tmp_path):
    assert type(small("pg").policy.optimizer) is torch.optim.Adam
    given = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}
    model = small("pg", policy_kwargs=given, learning_rate=0.02).learn(96)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = SVPG.load(tmp_path / "model", device="cpu").policy, PopulationPolicy.load(tmp_path / "policy", device="cpu")
    for policy in (model.policy, *loaded):
        assert type(policy.optimizer) is torch.optim.SGD
        assert policy.optimizer.defaults["momentum"] == 0.9
    assert loaded[0].optimizer.param_groups[0]["lr"] == 0.02


def test_a_policy_saved_alone_can_be_loaded(small, tmp_path):
    model = small("wnpg").learn(96)
    model.policy.save(tmp_path / "policy")
    loaded = PopulationPolicy.load(tmp_path / "policy", device="cpu")
    observation = np.ones(3, np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    torch.testing.assert_close(loaded.theta, model.policy.theta, rtol=0, atol=0)


def test_parameters_that_are_moved_stay_tied(small):
    policy = small("pg").policy
    before = policy.theta.clone()
    policy.double()
    assert policy.theta.dtype == torch.float64
    torch.testing.assert_close(policy.theta, before.double(), rtol=0, atol=0)
    policy.theta.zero_()
    assert all(not particle.action_net.weight.any() for particle in policy)


def test_alone_the_policy_is_its_best_particle(small):
    policy = small("a2c").policy
    policy.best.fill_(2)
    observations, actions = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        expected = policy.particles[2].evaluate_actions(observations, actions)
        torch.testing.assert_close(policy.evaluate_actions(observations, actions), expected)
        torch.testing.assert_close(policy.predict_values(observations), expected[0])
        torch.testing.assert_close(policy.get_distribution(observations).log_prob(actions), expected[1])


class Normalized(FlattenExtractor):
    """Batch norm and dropout before anything else."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.batch_norm = torch.nn.BatchNorm1d(self.features_dim)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, observations):
        return self.dropout(self.batch_norm(super().forward(observations)))


def test_statistics_of_batch_norm_are_frozen_in_rollouts_and_every_particle_has_its_own(small, fill, algorithm):
    model = small(algorithm, policy_kwargs={"features_extractor_class": Normalized})
    assert model.policy.stack is None

    def means():
        return [particle.features_extractor.batch_norm.running_mean.clone() for particle in model.policy]

    fill(model)
    assert not any(mean.any() for mean in means())
    model.train()
    after = means()
    assert all(mean.any() for mean in after)
    assert not torch.equal(after[0], after[1])
    observation = np.ones((5, 3), np.float32)
    actions = [model.predict(observation, deterministic=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*actions)
