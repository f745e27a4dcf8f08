"""Models that were changed between two rollouts: layers frozen or replaced, copied, loaded with other settings."""

import copy

import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from sb3_wng import BGPG, BGWNPG, NPG, PG, WNPG, rank_embeddings
from sb3_wng.algorithms import policy_gradient

EPOCHS = {"n_policy_updates": 2, "policy_batch_size": 16}
BUILDS = {"WNPG": (WNPG, {}), "PG": (PG, EPOCHS), "BGPG": (BGPG, EPOCHS)}


@pytest.fixture(params=BUILDS)
def model(request, small):
    cls, settings = BUILDS[request.param]
    return small(cls, "Pendulum-v1", **settings)


def layers(model):
    return model.policy.mlp_extractor.policy_net[0], model.policy.action_net


def test_frozen_layers_stay_and_thawed_ones_move_again(model):
    first, last = layers(model)
    first.requires_grad_(False)
    before = copy.deepcopy((first, last))
    model.learn(32)
    assert torch.equal(first.weight, before[0].weight)
    assert not torch.equal(last.weight, before[1].weight)
    first.requires_grad_(True)
    model.learn(32, reset_num_timesteps=False)
    assert not torch.equal(first.weight, before[0].weight)


def test_a_frozen_critic_stays(model):
    critic = [*model.policy.mlp_extractor.value_net.parameters(), *model.policy.value_net.parameters()]
    for parameter in critic:
        parameter.requires_grad_(False)
    before = copy.deepcopy(critic)
    model.learn(32)
    assert all(torch.equal(q, p) for q, p in zip(critic, before, strict=True))


def test_a_policy_that_takes_the_place_of_another_is_trained(model, small):
    model.learn(32)
    model.policy = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, seed=1, device="cpu").policy
    before = copy.deepcopy(layers(model))
    model.learn(32, reset_num_timesteps=False)
    assert not any(torch.equal(q.weight, p.weight) for q, p in zip(layers(model), before, strict=True))


def test_a_copied_model_learns_as_the_original(model, weights):
    model.learn(32)
    copied = copy.deepcopy(model)
    learnt = []
    for either in (model, copied):
        set_random_seed(0)
        learnt.append(weights(either.learn(32)))
    assert torch.equal(*learnt)


def test_a_new_learning_rate_reaches_the_actor(small):
    model = small(PG, "Pendulum-v1", **EPOCHS).learn(32)
    before = [parameter.detach().clone() for parameter in model.actor_parameters]
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.learn(32, reset_num_timesteps=False)
    assert all(torch.equal(q, p) for q, p in zip(model.actor_parameters, before, strict=True))


class Attention(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.inputs = nn.Linear(1, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, observations):
        return self.attention(self.inputs(observations[:, :, None])).mean(dim=1)


@pytest.mark.parametrize("settings", [{}, {"metric": "kernel", "n_basis": 4}], ids=["closed_form", "kernel"])
@pytest.mark.parametrize("cls", [WNPG, BGWNPG])
def test_attention_is_differentiated_twice(small, cls, settings):
    model = small(cls, "Pendulum-v1", policy_kwargs={"features_extractor_class": Attention}, **settings)
    before = [parameter.detach().clone() for parameter in model.actor_parameters]
    model.learn(32)
    assert not all(torch.equal(q, p) for q, p in zip(model.actor_parameters, before, strict=True))


def test_embeddings_are_ranked_with_attention_and_the_model_can_be_copied_afterwards(small):
    model = small(WNPG, "Pendulum-v1", n_steps=64, policy_kwargs={"features_extractor_class": Attention})
    assert rank_embeddings(model, ["final_state"], n_basis=2, embedding_horizon=8)
    copy.deepcopy(model)


class Normalized(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, observations):
        return self.norm(observations)


def test_the_critic_leaves_batch_statistics_that_the_actor_shares(small, fill, watch):
    kwargs = {"features_extractor_class": Normalized}
    model = fill(small(WNPG, "Pendulum-v1", policy_kwargs=kwargs, n_steps=128, target_kl=0.003))
    records = watch(model)
    model.train()
    norm = model.policy.features_extractor.norm
    assert norm.num_batches_tracked == 1  # the rollout's, before the step
    assert records[0]["train/kl_divergence_loss"] <= 0.003


def test_a_metric_can_change_when_a_model_is_loaded(small, tmp_path):
    small(WNPG, "Pendulum-v1").learn(32).save(tmp_path / "closed_form")
    env = gym.make("Pendulum-v1")
    model = WNPG.load(tmp_path / "closed_form", env, metric="kernel", n_basis=4, device="cpu").learn(32)
    assert "train/effective_rank" in model.logger.name_to_value
    model.save(tmp_path / "kernel")
    assert WNPG.load(tmp_path / "kernel", env, metric="closed_form", device="cpu").learn(32).num_timesteps == 32


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
def test_an_embedding_can_change_when_a_model_is_loaded(small, tmp_path, distance):
    settings = {"distance": distance, "embedding": "action_sequence", "embedding_horizon": 4, **EPOCHS}
    small(BGPG, "Pendulum-v1", **settings).learn(64).save(tmp_path / "model")
    env = gym.make("Pendulum-v1")
    loaded = BGPG.load(tmp_path / "model", env, embedding="state_visitation", device="cpu").learn(64)
    assert loaded.logger.name_to_value["train/wasserstein_distance"] > 0


@pytest.mark.parametrize("saved", [0.0, -1.0, 1.0])
def test_a_coefficient_given_to_load_is_where_adaptation_starts(small, tmp_path, saved):
    small(BGPG, "Pendulum-v1", wasserstein_coef=saved, **EPOCHS).save(tmp_path / "model")
    loaded = BGPG.load(tmp_path / "model", wasserstein_coef=5.0, adaptive_coef=True, device="cpu")
    assert loaded.behavior_penalty.coefficient == 5


def test_parameters_from_before_the_first_update_can_be_brought_back(small):
    model = small(BGPG, "Pendulum-v1", distance="dual", **EPOCHS)
    before = copy.deepcopy(model.get_parameters())
    model.learn(32)
    model.set_parameters(before)
    torch.testing.assert_close(model.get_parameters()["policy"], before["policy"], rtol=0, atol=0)
    assert len(model.behavior_penalty.samples.duals) == 0
    model.learn(32)


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
def test_a_line_search_compares_policies_and_not_draws(small, chase, fill, distance):
    reference = torch.full((20, 2), 1.5).numpy()
    model = fill(small(BGWNPG, chase(), n_steps=256, distance=distance, reference=reference, wasserstein_coef=10.0))
    batch = model._policy_batch(next(model.rollout_buffer.get(batch_size=None)))
    model.behavior_penalty.begin(batch.old_law)
    values = [model.measure(batch).objective for _ in range(3)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)
    model.behavior_penalty.begin(batch.old_law)  # of another rollout: another draw
    assert abs(model.measure(batch).objective - values[0]) > 1e-3


class Thousandfold(gym.Wrapper):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 1000 * reward, terminated, truncated, info


def test_steps_that_overflow_are_shortened(small):
    env = Thousandfold(gym.make("Pendulum-v1"))
    settings = {"step_rule": "fixed_rate", "normalize_advantage": False, "target_kl": 0.03, "n_steps": 256}
    model = small(WNPG, env, **settings).learn(256)
    assert model.policy.log_std.abs().max() < 1


def test_an_interrupted_line_search_leaves_no_trial_behind(small, fill, weights, monkeypatch):
    model = fill(small(NPG, "Pendulum-v1"))
    before = weights(model)

    def interrupted(batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    assert torch.equal(weights(model), before)


def test_replaced_layers_are_trained(model):
    model.learn(32)
    model.policy.action_net, model.policy.value_net = nn.Linear(8, 1), nn.Linear(8, 1)
    before = copy.deepcopy((model.policy.action_net, model.policy.value_net))
    model.learn(32, reset_num_timesteps=False)
    assert not torch.equal(model.policy.action_net.weight, before[0].weight)
    assert not torch.equal(model.policy.value_net.weight, before[1].weight)
    model.policy.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    model.policy.value_net = nn.Linear(8, 1)
    with pytest.raises(ValueError, match="several groups of parameters"):
        model.learn(32, reset_num_timesteps=False)


class Plain(BaseFeaturesExtractor):
    """Batch norm without parameters."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False), nn.Tanh())

    def forward(self, observations):
        return self.net(observations)


def test_the_critic_leaves_statistics_of_norms_without_parameters(small, fill):
    model = fill(small(WNPG, "Pendulum-v1", policy_kwargs={"features_extractor_class": Plain}))
    norm = model.policy.features_extractor.net[1]
    measured = []
    fit = policy_gradient.fit_critic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_gradient, "fit_critic", lambda *given: measured.append(norm.running_mean.clone()) or fit(*given))
        model.train()
    assert torch.equal(norm.running_mean, measured[0])


class Masked(ActorCriticPolicy):
    """Never takes the last action."""

    def _get_action_dist_from_latent(self, latent):
        logits = self.action_net(latent)
        mask = torch.arange(logits.shape[1]) == logits.shape[1] - 1
        return self.action_dist.proba_distribution(logits.masked_fill(mask, -torch.inf))


@pytest.mark.parametrize(("cls", "settings"), BUILDS.values(), ids=BUILDS)
def test_actions_whose_logits_are_minus_infinity_are_learnt_around(cls, settings, small):
    model = small(cls, "Acrobot-v1", policy=Masked, **settings).learn(64, log_interval=9)
    logged = model.logger.name_to_value
    assert 0 < logged["train/kl_divergence_loss"] < 1
    assert logged["train/n_skipped_steps"] == 0
