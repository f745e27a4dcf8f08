"""WNPG with a kernel metric on behaviour: every embedding, on the real loop."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_wng import WNPG
from sb3_wng.algorithms.behavior_samples import STATE_EMBEDDINGS, BehaviorSampler
from sb3_wng.algorithms.policy_metrics import policy_metrics
from sb3_wng.algorithms.rollouts import flat_rewards
from sb3_wng.behavior import EMBEDDINGS, cut_windows, make_embedding

SMALL = {"n_steps": 64, "n_basis": 4, "embedding_horizon": 8, "seed": 0, "policy_kwargs": {"net_arch": [8]}, "batch_size": 64}
ALL = [*STATE_EMBEDDINGS, *EMBEDDINGS]


def trained(env="Pendulum-v1", steps=128, **arguments):
    return WNPG(arguments.pop("policy", "MlpPolicy"), env, **{"metric": "kernel", **SMALL, **arguments}).learn(steps)


def actor(model):
    return parameters_to_vector(model.actor_parameters).detach().clone()


@pytest.mark.parametrize("embedding", ALL)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("metric", ["kernel", "combined"])
def test_every_embedding_trains_within_the_region(env, embedding, metric):
    model = trained(env, embedding=embedding, metric=metric)
    logs = model.logger.name_to_value
    assert torch.isfinite(actor(model)).all()
    assert logs["train/effective_rank"] >= 1
    assert logs["train/kl_divergence_loss"] <= model.target_kl
    assert not torch.equal(actor(model), actor(WNPG("MlpPolicy", env, metric=metric, **SMALL)))


def test_embeddings_shape_the_step():
    actors = [actor(trained(embedding=embedding, steps=64)) for embedding in ALL]
    for i, first in enumerate(actors):
        for second in actors[:i]:
            assert not torch.allclose(first, second)


@pytest.mark.parametrize("embedding", ["action_sequence", "final_state", "state_visitation"])
def test_dict_and_image_observations_have_trajectories(embedding):
    trained(SimpleMultiObsEnv(), policy="MultiInputPolicy", embedding=embedding)
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    trained(
        env,
        policy="CnnPolicy",
        embedding=embedding,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        steps=64,
    )


@pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3)])
def test_discrete_factors_have_trajectories(space):
    class Env(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,))
        action_space = space

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), float(np.sum(action)), self.np_random.random() < 0.2, False, {}

    for embedding in ("actions", "action_sequence"):
        trained(Env(), embedding=embedding)


def test_a_users_embedding_is_called_on_every_window_and_learnt_from():
    seen = []

    def mean_height(trajectory):
        seen.append(len(trajectory.rewards))
        return trajectory.observations.mean(dim=0)[:2]

    model = trained(embedding=mean_height, steps=64)
    assert seen == [8] * 8  # 64 steps of Pendulum in windows of 8
    assert not torch.allclose(actor(model), actor(trained(embedding="final_state", steps=64)))


def test_a_users_embedding_that_breaks_is_named_before_anything_is_learnt():
    def broken(trajectory):
        return float("nan")

    model = WNPG("MlpPolicy", "Pendulum-v1", metric="kernel", embedding=broken, **SMALL)
    before = actor(model)
    with pytest.raises(ValueError, match=r"embedding 'broken' returned non-finite"):
        model.learn(64)
    assert torch.equal(actor(model), before)


def test_few_samples_are_warned_of_once():
    with pytest.warns(UserWarning, match=r"8 samples of behaviour for n_basis=50") as warned:
        trained(embedding="final_state", n_basis=50, steps=192)
    assert sum("samples of behaviour" in str(warning.message) for warning in warned) == 1


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_a_windows_score_is_the_sum_of_its_steps_scores(env):
    """The Jacobian of E[h] by one batched pass equals explicit sums over windows and steps."""
    model = trained(env, embedding="final_state", steps=64)
    sampler = BehaviorSampler(
        model.policy, model.actor_parameters, model.observation_space, model.action_space, model.kernel_metric.generator
    )
    sample = sampler.trajectories(model.rollout_buffer, make_embedding("final_state"), 8, flat_rewards(model))
    windows = cut_windows(model.rollout_buffer.episode_starts.astype(bool), 8)
    values = torch.randn(2, len(windows.mask), generator=torch.Generator().manual_seed(0))
    jacobian = sample.expectation_gradient(values, torch.zeros(2, len(windows.mask), sample.embeddings.shape[1]))
    observations = model.rollout_buffer.to_torch(model.rollout_buffer.observations)
    actions = model.rollout_buffer.to_torch(model.rollout_buffer.actions)
    centred = (values - values.mean(1, keepdim=True)) / (len(windows.mask) - 1)
    expected = torch.zeros_like(jacobian)
    for window, (index, mask) in enumerate(zip(windows.index, windows.mask, strict=True)):
        for step in index[mask]:
            action = actions[step : step + 1]
            action = action.long().flatten() if env == "CartPole-v1" else action
            log_prob = model.policy.get_distribution(observations[step : step + 1]).log_prob(action).sum()
            score = torch.autograd.grad(log_prob, model.actor_parameters)
            expected += centred[:, window, None] * parameters_to_vector(score)
    torch.testing.assert_close(jacobian, expected, rtol=1e-3, atol=1e-5)


def test_action_sequences_are_the_actions_taken_and_move_along_their_path():
    model = trained(embedding="action_sequence", steps=64)
    sampler = BehaviorSampler(
        model.policy, model.actor_parameters, model.observation_space, model.action_space, model.kernel_metric.generator
    )
    sample = sampler.trajectories(model.rollout_buffer, make_embedding("action_sequence"), 8, flat_rewards(model))
    torch.testing.assert_close(
        sample.embeddings.detach(), torch.from_numpy(model.rollout_buffer.actions).view(8, 8), rtol=1e-4, atol=1e-5
    )
    gradient = torch.autograd.grad(sample.embeddings[0, 0], model.policy.action_net.bias)[0]
    torch.testing.assert_close(gradient, torch.ones(1))  # d action / d mean


def test_the_published_configuration_runs_and_adapts_its_damping_every_fifth_step():
    published = {
        "step_rule": "optimizer",
        "embedding": "actions_and_values",
        "n_basis": 5,
        "log_bandwidth": 0.0,
        "cg_damping": 1e-5,
        "adaptive_damping": 5,
        "diagonal_damping": True,
        "n_policy_updates": 10,
        "policy_batch_size": 16,
        "target_kl": None,
        "learning_rate": 3e-4,
    }
    model = WNPG("MlpPolicy", "Pendulum-v1", metric="kernel", **{**SMALL, **published})
    values = []
    update = model.natural_gradient.damping.update

    def record(ratio):
        update(ratio)
        values.append(model.natural_gradient.damping.value.item())

    model.natural_gradient.damping.update = record
    model.learn(1024)
    changes = np.diff([1e-5, *values])
    assert len(values) == 16 * 10 * 4
    assert (changes[np.arange(len(changes)) % 5 != 4] == 0).all()  # adapted every fifth step only
    assert (changes < 0).any()
    assert all(1e-10 <= value <= 1e5 for value in values)


def test_a_resumed_run_with_trajectories_equals_the_uninterrupted_one(tmp_path):
    model = trained(embedding="reward_to_go", steps=64, adaptive_damping=True)
    model.save(tmp_path / "model")
    loaded = WNPG.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    loaded.rollout_buffer, loaded._logger = model.rollout_buffer, model.logger
    for each in (model, loaded):
        set_random_seed(0)
        each.train()
    assert torch.equal(actor(model), actor(loaded))


@pytest.mark.parametrize("embedding", ["foo", 3])
def test_an_unknown_embedding_is_refused_at_once_with_all_known_ones(embedding):
    with pytest.raises(ValueError, match=r"embedding must be .*reward_to_go.*actions_and_values"):
        WNPG("MlpPolicy", "Pendulum-v1", metric="kernel", embedding=embedding, **SMALL)


def test_minibatches_are_refused_for_trajectories():
    with pytest.raises(ValueError, match="policy_batch_size must be None for a kernel metric"):
        WNPG("MlpPolicy", "Pendulum-v1", metric="kernel", embedding="final_state", step_rule="optimizer", policy_batch_size=16)


def test_rewards_to_go_are_the_environments_own_at_time_limits():
    seen = []

    def rewards(trajectory):
        seen.append(trajectory.rewards)
        return trajectory.rewards.sum()

    env = gym.wrappers.TransformReward(gym.make("Pendulum-v1", max_episode_steps=8), lambda reward: 1.0)
    model = WNPG("MlpPolicy", env, metric="kernel", embedding=rewards, **SMALL)
    for parameter in model.policy.value_net.parameters():
        torch.nn.init.constant_(parameter, 5.0)  # values, which SB3 adds to rewards at time limits
    model.learn(64)
    assert len(seen) == 8
    assert all(torch.equal(part, torch.ones(8)) for part in seen)


def test_an_embedding_that_promises_a_gradient_and_has_none_is_named(small):
    class Detached:
        is_pathwise = True

        def __call__(self, trajectories):
            return trajectories.actions.detach().mean(dim=1)

    model = small(WNPG, "Pendulum-v1", metric="kernel", embedding=Detached(), embedding_horizon=4, n_basis=3)
    with pytest.raises(ValueError, match="is_pathwise=True promises a gradient"):
        model.learn(32)


def sampled(model):
    """A model's rollout, its gradient, and what draws behaviour from them."""
    batch = model._policy_batch(next(model.rollout_buffer.get(batch_size=None)))
    generator = torch.Generator().manual_seed(0)
    sampler = BehaviorSampler(model.policy, model.actor_parameters, model.observation_space, model.action_space, generator)
    return batch, model.policy_gradient(batch), sampler


def test_actions_are_measured_in_units_of_their_spread_at_each_state(small, fill, monkeypatch):
    model = fill(small(WNPG, "Pendulum-v1", metric="kernel", n_basis=4))
    with torch.no_grad():
        model.policy.action_net.weight.mul_(300)  # means spread far more than actions at one state
    batch, estimate, _ = sampled(model)
    scales, forward = [], model.kernel_metric.forward
    monkeypatch.setattr(
        model.kernel_metric, "forward", lambda sample, scale=1.0: scales.append(scale) or forward(sample, scale)
    )
    policy_metrics(model, batch, estimate, 1.0)
    assert scales == pytest.approx([1 / batch.old_law.variance().item()])
    assert batch.old_law.mean.std() > 1.5


def test_a_combined_step_is_as_long_as_the_closed_form_says(small, fill):
    settings = {"metric": "combined", "n_basis": 4, "target_kl": None, "target_distance": 1e-4, "line_search_max_iter": 0}
    model = fill(small(WNPG, "Pendulum-v1", n_steps=128, **settings))
    unit = model.action_law(torch.zeros(1, 3)).spread().item()
    model.train()
    assert model.logger.name_to_value["train/wasserstein_distance"] / unit == pytest.approx(1e-4, rel=0.1)


class Shared(BaseFeaturesExtractor):
    def __init__(self, space):
        super().__init__(space, 4)
        self.net = nn.Linear(3, 4)

    def forward(self, x):
        return self.net(x)


def test_the_kernel_of_actions_compares_states(small, fill):
    model = fill(small(WNPG, "Pendulum-v1"))
    batch, estimate, sampler = sampled(model)
    sample = sampler.actions(batch, estimate)
    assert torch.equal(sample.context, batch.observations)


def test_values_do_not_move_along_the_path(small, fill):
    model = fill(small(WNPG, "Pendulum-v1", policy_kwargs={"features_extractor_class": Shared}))
    batch, estimate, sampler = sampled(model)
    sample = sampler.actions_and_values(batch, estimate)
    grads = torch.autograd.grad(sample.embeddings[:, -1].sum(), model.actor_parameters, allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads)
