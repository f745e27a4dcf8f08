"""The training loop: who is updated by what, how far, and that it learns."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from torch import nn

from sb3_wng import NPG, PG, WNPG
from sb3_wng.algorithms import critic
from sb3_wng.algorithms.critic import fit_critic

REGIONS = {
    "closed form": (WNPG, {}),
    "kernel": (WNPG, {"metric": "kernel", "n_basis": 20}),
    "discrete": (WNPG, {}),
    "adaptive damping": (WNPG, {"adaptive_damping": True, "cg_damping": 0.01}),
    "several steps": (WNPG, {"n_policy_updates": 3}),
    "heavier spread": (WNPG, {"std_weight": 4.0}),
    "sub-sampled": (WNPG, {"sub_sampling_factor": 4}),
}
KEYS = """
    damping wasserstein_distance kl_divergence_loss policy_objective is_line_search_success explained_variance value_loss
    n_updates std learning_rate n_skipped_steps
""".split()


class Misleading(nn.Module):
    """An actor and a critic whose parameters are named after each other."""

    latent_dim_pi = latent_dim_vf = 8

    def __init__(self, n_features):
        super().__init__()
        self.value_net = nn.Sequential(nn.Linear(n_features, 8), nn.Tanh())
        self.policy_x = nn.Sequential(nn.Linear(n_features, 8), nn.Tanh())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.value_net(features)

    def forward_critic(self, features):
        return self.policy_x(features)


class MisleadingPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Misleading(self.features_dim)


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, *layers):
        super().__init__(observation_space, 8)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(np.prod(observation_space.shape), 8), *layers)

    def forward(self, observations):
        return self.net(observations)


class NormalizingExtractor(Extractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, nn.BatchNorm1d(8), nn.Tanh())

    @property
    def statistics(self):
        return torch.cat([self.net[2].running_mean, self.net[2].running_var])


class DropoutExtractor(Extractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, nn.Tanh(), nn.Dropout(0.5))


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=0).item()


def copies(parameters):
    return [q.detach().clone() for q in parameters]


def equal(parameters, others):
    return [torch.equal(a, b) for a, b in zip(parameters, others, strict=True)]


# --- who is updated by what ------------------------------------------------------------------------


POLICIES = {
    "plain": ("MlpPolicy", {}),
    "misleading names": (MisleadingPolicy, {}),
    "shared extractor": ("MlpPolicy", {"features_extractor_class": Extractor}),
    "separate extractors": ("MlpPolicy", {"features_extractor_class": Extractor, "share_features_extractor": False}),
    "weight decay": ("MlpPolicy", {"optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_actor_and_critic_leave_each_other_alone(build, monkeypatch, policy):
    model = build("Pendulum-v1", *POLICIES[policy])
    model.learn(model.n_steps)  # fills the optimiser's momenta, which would move a parameter with a gradient of zero
    actor, critic = copies(model.actor_parameters), copies(model.critic_parameters)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_update_policy", lambda rollout: None)
        model.train()
    assert all(equal(model.actor_parameters, actor))
    assert not any(equal(model.critic_parameters, critic))
    critic = copies(model.critic_parameters)
    with monkeypatch.context() as patch:
        patch.setattr("sb3_wng.algorithms.policy_gradient.fit_critic", lambda model, rollout: None)
        model.train()
    assert not any(equal(model.actor_parameters, actor))
    assert all(equal(model.critic_parameters, critic))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_parameter_belongs_to_the_actor_or_the_critic_whatever_its_name(small, policy):
    model = small(WNPG, "Pendulum-v1", *POLICIES[policy])
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    actor, critic = ([names[id(q)] for q in part] for part in (model.actor_parameters, model.critic_parameters))
    assert sorted(actor + critic) == sorted(names.values())
    swapped = policy == "misleading names"
    assert all(name.startswith("mlp_extractor.value_net") == swapped for name in actor if "mlp" in name)
    assert {"action_net.weight", "log_std"} <= set(actor)
    assert "value_net.weight" in critic
    assert ("features_extractor.net.1.weight" in actor) == ("extractor" in policy)  # SB3's other name for the actor's
    assert ("vf_features_extractor.net.1.weight" in critic) == (policy == "separate extractors")


# --- the step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [spaces.Box(-2, 2, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_an_npg_step_is_a_trpo_step(small, chase, fill, action_space):
    trpo_class = pytest.importorskip("sb3_contrib").TRPO
    target_kl, cg_damping = 2e-3, 0.01
    n_actions = action_space.shape[0] if action_space.shape else 1  # contrib's KL is a mean over action dimensions
    common = {"n_steps": 256, "batch_size": 256, "n_critic_updates": 1, "cg_max_steps": 100, "cg_damping": cg_damping}
    npg = fill(small(NPG, chase(action_space), target_kl=target_kl, line_search_max_iter=0, **common))
    trpo = small(trpo_class, chase(action_space), target_kl=target_kl / n_actions, **common)
    trpo.policy.load_state_dict(npg.policy.state_dict())
    trpo.rollout_buffer = copy.deepcopy(npg.rollout_buffer)
    trpo.set_logger(configure(None, []))
    start = torch.cat([q.flatten() for q in copies(npg.actor_parameters)])
    names = {id(parameter): name for name, parameter in npg.policy.named_parameters()}
    npg.train()
    trpo.train()
    assert trpo.logger.name_to_value["train/is_line_search_success"]
    theirs = dict(trpo.policy.named_parameters())
    step = torch.cat([q.detach().flatten() for q in npg.actor_parameters]) - start
    their_step = torch.cat([theirs[names[id(q)]].detach().flatten() for q in npg.actor_parameters]) - start
    assert cosine(step, their_step) > 0.9999
    # contrib measures the length of its step by the damped metric, which makes it shorter
    shortening = 1 / np.sqrt(1 + cg_damping * step.square().sum().item() / (2 * target_kl / n_actions))
    assert their_step.norm().item() == pytest.approx(shortening * step.norm().item(), rel=0.01)


def test_wasserstein_is_fisher_for_isotropic_gaussians_with_a_spread_of_weight_two(small, chase, fill, weights):
    n_actions, kl = 3, 1e-3
    env = chase(spaces.Box(-2, 2, (n_actions,)))
    common = {"n_steps": 128, "batch_size": 128, "n_critic_updates": 0, "cg_max_steps": 50, "line_search_max_iter": 0}
    common["policy_kwargs"] = {"log_std_init": -0.7}

    def step(cls, **settings):
        model = fill(small(cls, env, **common, **settings))
        before = weights(model)
        model.train()
        return weights(model) - before

    # in units of its spread the metric is Fisher's per action dimension, and twice the KL the squared distance
    fisher = step(NPG, target_kl=kl)
    torch.testing.assert_close(step(WNPG, target_distance=2 * kl / n_actions, std_weight=2.0), fisher, rtol=1e-3, atol=1e-5)
    wasserstein = step(WNPG, target_distance=2 * kl / n_actions)
    assert cosine(wasserstein, fisher) < 0.999
    assert wasserstein.norm() > fisher.norm()  # moving the spread costs half as much


def test_wasserstein_differs_from_fisher_where_spreads_differ(small, chase, fill):
    steps = {}
    for cls, settings in ((WNPG, {"std_weight": 2.0}), (NPG, {})):
        model = small(cls, chase(), n_steps=128, batch_size=128, cg_max_steps=50, **settings)
        with torch.no_grad():
            model.policy.log_std.copy_(torch.tensor([0.0, -1.5]))
        before = copies(fill(model).actor_parameters)
        model.train()
        steps[cls] = torch.cat([(q - p).flatten() for q, p in zip(copies(model.actor_parameters), before, strict=True)])
    assert cosine(steps[WNPG], steps[NPG]) < 0.9


@pytest.mark.parametrize("region", REGIONS)
def test_every_update_stays_within_target_distance(small, chase, watch, region):
    cls, settings = REGIONS[region]
    env = chase(spaces.MultiDiscrete([3, 2])) if region == "discrete" else chase()
    model = small(cls, env, n_steps=64, batch_size=64, target_distance=0.03, target_kl=None, **settings)
    updates = watch(model)
    model.learn(8 * 64)
    distances = [update["relative"] for update in updates]
    assert len(distances) == 8
    assert max(distances) <= 0.03 * (1 + 1e-3)
    assert max(distances) > 0.01  # and makes use of it
    for update in updates:
        assert update["train/wasserstein_distance"] == pytest.approx(update["distance"], rel=1e-3, abs=1e-7)
        assert update["train/kl_divergence_loss"] == pytest.approx(update["kl"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("cls", [WNPG, NPG])
@pytest.mark.parametrize("n_policy_updates", [1, 3])
@pytest.mark.parametrize("use_sde", [False, True])
def test_every_update_stays_within_target_kl(small, chase, watch, cls, n_policy_updates, use_sde):
    settings = {} if cls is NPG else {"target_distance": 0.1}
    settings.update(n_steps=64, batch_size=64, n_policy_updates=n_policy_updates, use_sde=use_sde)
    model = small(cls, chase(), target_kl=0.01, **settings)
    updates = watch(model)
    model.learn(8 * 64)
    divergences = [update["kl"] for update in updates]
    assert max(divergences) <= 0.01 * (1 + 1e-3)
    assert max(divergences) > 0.003


@pytest.mark.parametrize("cls", [WNPG, NPG])
def test_a_radius_may_fall_to_zero(small, chase, watch, cls):
    name, measure, radius = ("target_kl", "kl", 0.02) if cls is NPG else ("target_distance", "relative", 0.04)
    settings = {name: LinearSchedule(radius, 0.0, 1.0), "n_steps": 64, "batch_size": 64}
    model = small(cls, chase(), **({"target_kl": None} | settings))
    updates = watch(model)
    model.learn(4 * 64)
    for update, share in zip(updates, (0.75, 0.5, 0.25), strict=False):
        assert 0.3 * radius * share < update[measure] <= radius * share * (1 + 1e-3)
    assert updates[3][measure] == pytest.approx(0, abs=1e-9)


def test_a_radius_of_zero_leaves_the_actor_and_trains_the_critic(small, chase, fill):
    model = fill(small(WNPG, chase(), target_distance=lambda progress: progress - 1e-9))
    model._current_progress_remaining = -0.01  # as after the last rollout where it does not divide the budget
    actor, critic = copies(model.actor_parameters), copies(model.critic_parameters)
    model.train()
    assert all(torch.equal(p, q) for p, q in zip(actor, model.actor_parameters, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(critic, model.critic_parameters, strict=True))


def test_epochs_stop_at_a_scheduled_target_kl(small, chase, fill, monkeypatch):
    settings = {"learning_rate": 3e-3, "n_policy_updates": 20, "policy_batch_size": None}
    counts = []
    for progress in (1.0, 0.01):
        model = fill(small(PG, chase(), target_kl=lambda progress: 0.1 * progress, **settings))
        model._current_progress_remaining = progress
        steps = []
        monkeypatch.setattr(model, "_policy_step", lambda *a, f=model._policy_step, s=steps: s.append(1) or f(*a))
        model.train()
        counts.append(len(steps))
    assert counts[1] < counts[0]


def test_a_fixed_rate_is_capped_by_target_kl(small, chase, watch):
    settings = {"step_rule": "fixed_rate", "normalize_advantage": False, "n_steps": 64, "batch_size": 64}
    divergences = {}
    for target_kl in (None, 0.01):
        updates = watch(model := small(WNPG, chase(), step_size=1.0, target_kl=target_kl, **settings))
        model.learn(4 * 64)
        divergences[target_kl] = max(update["kl"] for update in updates)
    assert divergences[0.01] <= 0.01 * (1 + 1e-3) < divergences[None]


def test_a_larger_target_distance_gives_a_longer_step(small, chase, watch):
    measured = []
    for target_distance in (0.005, 0.02, 0.08):
        updates = watch(model := small(WNPG, chase(), target_distance=target_distance, target_kl=None))
        model.learn(32)
        measured.append(updates[0]["relative"])
    assert measured[0] < 0.5 * measured[1] < 0.25 * measured[2]


def record_steps(model, monkeypatch):
    reports, policy_step = [], model._policy_step

    def recorded(*arguments):
        reports.append(policy_step(*arguments))
        return reports[-1]

    monkeypatch.setattr(model, "_policy_step", recorded)
    return reports


def test_several_policy_updates_share_the_region(small, chase, monkeypatch):
    reports = {}
    for n_policy_updates in (1, 3):
        settings = {"target_distance": 0.02, "target_kl": None, "n_policy_updates": n_policy_updates}
        reports[n_policy_updates] = record_steps(model := small(WNPG, chase(), **settings), monkeypatch)
        model.learn(32)
    (single,), several = reports[1], reports[3]
    assert len(several) == 3
    assert all(report.accepted for report in several)
    assert several[0].trial.distance < 0.2 * single.trial.distance  # a third as long, squared
    assert several[0].trial.distance < several[-1].trial.distance <= 0.02
    assert several[-1].trial.distance > 0.5 * single.trial.distance
    objectives = [report.trial.objective for report in several]
    assert objectives == sorted(objectives)


def test_sub_sampling_the_metric_barely_turns_the_step(small, chase, fill, weights):
    steps = {}
    for factor in (1, 4):
        model = fill(small(WNPG, chase(), n_steps=512, sub_sampling_factor=factor, n_critic_updates=0))
        before = weights(model)
        set_random_seed(0)  # the order in which the buffer is read
        model.train()
        steps[factor] = weights(model) - before
    assert 0.9 < cosine(steps[1], steps[4]) < 1 - 1e-6


@pytest.mark.parametrize("cls", [WNPG, NPG])
def test_adaptive_damping_follows_the_reduction_ratio(small, chase, watch, cls):
    model = small(cls, chase(), adaptive_damping=True, cg_damping=0.1)
    updates = watch(model)
    model.learn(6 * 32)
    damping = 0.1
    for update in updates:
        ratio = update["train/reduction_ratio"]
        damping = damping / 0.85 if ratio < 0.25 else damping * 0.85 if ratio > 0.75 else damping
        assert update["train/damping"] == pytest.approx(damping)
    assert damping != 0.1


def test_constant_damping_stays(build):
    model = build()
    before = model.natural_gradient.damping.value.item()
    assert model.learn(96).natural_gradient.damping.value.item() == before


def test_the_passes_of_pg_stop_at_target_kl(small, chase, watch, monkeypatch):
    n_steps, kl = {}, {}
    for target_kl in (None, 0.005):
        settings = {"learning_rate": 3e-3, "n_policy_updates": 20, "policy_batch_size": None, "target_kl": target_kl}
        model = small(PG, chase(), **settings)
        reports, updates = record_steps(model, monkeypatch), watch(model)
        model.learn(32)
        n_steps[target_kl], kl[target_kl] = len(reports), updates[0]["kl"]
    assert n_steps[None] == 20
    assert 1 < n_steps[0.005] < 20
    assert 1.5 * 0.005 < kl[0.005] < kl[None]


def test_minibatch_passes_use_every_sample_once(small, chase, monkeypatch):
    model = small(PG, chase(), n_policy_updates=3, policy_batch_size=10)
    seen, policy_step = [], model._policy_step

    def recorded(batch, *arguments):
        seen.append(batch.advantages)
        return policy_step(batch, *arguments)

    monkeypatch.setattr(model, "_policy_step", recorded)
    model.learn(32)
    assert [len(advantages) for advantages in seen] == 3 * [10, 10, 10, 2]
    passes = [torch.cat(seen[i : i + 4]) for i in (0, 4, 8)]
    assert not torch.equal(passes[0], passes[1])
    for one in passes[1:]:
        torch.testing.assert_close(one.sort().values, passes[0].sort().values, rtol=0, atol=0)


# --- the loop --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_parameters(build, weights):
    def train(seed):
        return weights(build("Pendulum-v1", n_steps=32, seed=seed).learn(96))

    first = train(3)
    torch.testing.assert_close(train(3), first, rtol=0, atol=0)
    assert not torch.allclose(train(4), first)


def test_the_kernel_metric_draws_from_its_own_generator(small, chase, fill, weights):
    """Nothing that others draw, such as the critic's minibatches, changes the step."""
    steps = []
    for seed in (1, 2):
        model = fill(small(WNPG, chase(), metric="kernel", n_basis=10, n_critic_updates=0))
        before = weights(model)
        set_random_seed(0)  # the order in which the buffer is read
        torch.manual_seed(seed)
        model.train()
        steps.append(weights(model) - before)
    assert steps[0].any()
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)


class Stop(BaseCallback):
    def _on_step(self):
        return False


@pytest.mark.parametrize("n_steps", [1, 32])
def test_a_callback_stops_at_the_first_step(build, weights, n_steps):
    model = build(make_vec_env("CartPole-v1", n_envs=2), n_steps=n_steps, batch_size=2)
    before = weights(model)
    callback = Stop()
    model.learn(100, callback)
    assert callback.n_calls == 1
    assert model.num_timesteps == 2
    assert torch.equal(weights(model), before)


def test_one_step_of_two_environments_is_enough(build, weights):
    model = build(make_vec_env("CartPole-v1", n_envs=2), n_steps=1, batch_size=2, normalize_advantage=True)
    before = weights(model)
    model.learn(10)
    assert model._n_updates == 5
    assert torch.isfinite(weights(model)).all()
    assert not torch.equal(weights(model), before)


def test_learning_continues_where_it_stopped(build):
    model = build().learn(64)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    assert model._n_updates == 4


def test_the_learning_rate_follows_its_schedule(build):
    model = build(learning_rate=lambda remaining: 1e-3 * remaining)
    model.learn(128)  # the last update starts with nothing remaining
    assert model.policy.optimizer.param_groups[0]["lr"] == 0
    model = build(learning_rate=lambda remaining: 1e-3 * (1 + remaining)).learn(128)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_the_step_size_follows_its_schedule(small, chase, monkeypatch):
    settings = {"step_rule": "fixed_rate", "normalize_advantage": False, "target_kl": None}
    model = small(WNPG, chase(), step_size=lambda remaining: 0.1 * (1 + remaining), **settings)
    reports = record_steps(model, monkeypatch)
    model.learn(64)
    assert [report.scale for report in reports] == pytest.approx([0.15, 0.1])


def test_a_step_size_may_decay_to_zero(small, chase, weights):
    model = small(WNPG, chase(), step_rule="fixed_rate", step_size=lambda remaining: 0.1 * remaining)
    model.learn(64)
    assert model._n_updates == 2
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize("action_space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(2)], ids=["box", "discrete"])
def test_users_find_what_they_plot_in_the_log(build, chase, action_space):
    model = build(chase(action_space)).learn(64)
    logged = model.logger.name_to_value
    expected = {f"train/{key}" for key in KEYS}
    if isinstance(action_space, spaces.Discrete):
        expected.remove("train/std")
    if model.step_rule != "optimizer":  # which measures nothing
        expected.add("train/reduction_ratio")
    if model.metric == "kernel":
        expected.add("train/effective_rank")
    assert expected <= logged.keys()
    assert all(np.isfinite(value) for key, value in logged.items() if key.startswith("train/"))
    assert logged["train/n_updates"] == 2
    assert ("train/effective_rank" in logged) == (model.metric == "kernel")


def test_tensorboard_folders_are_named_after_the_class(build, tmp_path):
    pytest.importorskip("tensorboard")
    model = build(tensorboard_log=str(tmp_path)).learn(32)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"{type(model).__name__}_1"]
    model.learn(32, tb_log_name="mine")
    assert (tmp_path / "mine_1").is_dir()


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_a_progress_bar_does_not_disturb(build):
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    assert build().learn(64, progress_bar=True).num_timesteps == 64


class RecordStatistics(BaseCallback):
    def __init__(self):
        super().__init__()
        self.starts, self.ends = [], []

    def _on_rollout_start(self):
        self.starts.append(self.model.policy.features_extractor.statistics.clone())

    def _on_rollout_end(self):
        self.ends.append(self.model.policy.features_extractor.statistics.clone())

    def _on_step(self):
        return not self.model.policy.training


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_batch_norm_is_frozen_in_rollouts_and_learns_in_updates(build, share_features_extractor):
    kwargs = {
        "features_extractor_class": NormalizingExtractor,
        "share_features_extractor": share_features_extractor,
    }
    record = RecordStatistics()
    build("Pendulum-v1", policy_kwargs=kwargs).learn(96, record)
    assert len(record.ends) == 3
    for start, end in zip(record.starts, record.ends, strict=True):
        torch.testing.assert_close(start, end, rtol=0, atol=0)
    for end, next_start in zip(record.ends, record.starts[1:], strict=False):
        assert not torch.equal(end, next_start)


class Counted(Extractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, nn.Tanh())
        self.n_calls = 0

    def forward(self, observations):
        self.n_calls += 1
        return super().forward(observations)


@pytest.mark.parametrize("is_shared", [True, False])
def test_what_the_critic_cannot_change_is_computed_once(small, fill, monkeypatch, is_shared):
    """SB3's shared extractor is the actor's; the critic learns the same from what it made of the rollout."""
    kwargs = {"features_extractor_class": Counted, "share_features_extractor": is_shared}
    fitted, n_calls = [], []
    for _ in range(2):
        model = fill(small(WNPG, "Pendulum-v1", policy_kwargs=kwargs, n_critic_updates=5, batch_size=8))
        rollout = next(model.rollout_buffer.get(batch_size=None))
        model.policy.vf_features_extractor.n_calls = 0
        torch.manual_seed(0)
        critic.fit_critic(model, rollout)
        fitted.append(copies(model.critic_parameters))
        n_calls.append(model.policy.vf_features_extractor.n_calls)
        monkeypatch.setattr(critic, "_fixed_features", lambda model, observations: None)
    torch.testing.assert_close(*fitted)
    assert n_calls == [2 if is_shared else 5 * 4, 5 * 4]  # twice, to see that there is no noise


class Noisy(Extractor):
    """Noise that no layer shows."""

    def forward(self, observations):
        return nn.functional.dropout(super().forward(observations), 0.5, self.training)


@pytest.mark.parametrize(("extractor", "is_fixed"), [(Extractor, True), (Noisy, False), (DropoutExtractor, False)])
def test_features_with_noise_are_not_fixed(small, fill, extractor, is_fixed):
    model = fill(small(WNPG, "Pendulum-v1", policy_kwargs={"features_extractor_class": extractor}))
    model.policy.set_training_mode(True)
    features = critic._fixed_features(model, next(model.rollout_buffer.get(batch_size=None)).observations)
    assert (features is not None) == is_fixed
    assert all(module.training for module in model.policy.modules())


def test_passes_without_a_cap_are_measured_once(small, fill, monkeypatch):
    model = fill(small(PG, "Pendulum-v1", n_policy_updates=5, target_kl=None))
    calls = []
    monkeypatch.setattr(model, "measure", lambda batch, measure=model.measure: calls.append(1) or measure(batch))
    monkeypatch.setattr(model, "action_law", lambda observations, law=model.action_law: calls.append(1) or law(observations))
    model.train()
    assert len(calls) == 2  # of the old law, and at the end


def test_dropout_acts_in_the_critics_updates_only(build, fill, monkeypatch):
    model = fill(build("Pendulum-v1", policy_kwargs={"features_extractor_class": DropoutExtractor}))
    modes = []
    for name in ("get_distribution", "predict_values"):
        function = getattr(model.policy, name)

        def recorded(observations, name=name, function=function):
            modes.append((name, model.policy.training))
            return function(observations)

        monkeypatch.setattr(model.policy, name, recorded)
    with torch.no_grad():
        buffer = model.rollout_buffer
        observations = torch.as_tensor(buffer.swap_and_flatten(buffer.observations))
        actions = torch.as_tensor(buffer.swap_and_flatten(buffer.actions))
        _, log_prob, _ = model.policy.evaluate_actions(observations, actions)
    torch.testing.assert_close(log_prob, torch.as_tensor(buffer.log_probs).flatten())  # no noise in the rollout
    model.train()
    assert set(modes) == {("get_distribution", False), ("predict_values", True)}


class StopWhenSolved(BaseCallback):
    """Saves the time of the rollouts after which there is nothing more to learn."""

    def _on_rollout_start(self):
        returns = [episode["r"] for episode in self.model.ep_info_buffer][-20:]
        self.is_solved = len(returns) == 20 and np.mean(returns) >= 450

    def _on_step(self):
        return not self.is_solved


@pytest.mark.slow
def test_wnpg_solves_cart_pole_with_its_settings_in_rl_zoo():
    yaml = pytest.importorskip("yaml")
    file = Path(__file__).parents[2] / "zoo_hyperparams" / "wnpg.yml"
    settings = yaml.safe_load(file.read_text())["CartPole-v1"]
    env = make_vec_env("CartPole-v1", n_envs=settings.pop("n_envs"), seed=0)
    n_timesteps = settings.pop("n_timesteps")
    assert n_timesteps <= 100_000
    model = WNPG(env=env, seed=0, device="cpu", **settings)
    model.learn(n_timesteps, StopWhenSolved())
    mean_return, _ = evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=10, seed=1), n_eval_episodes=10)
    assert mean_return >= 475


def test_the_critic_learns_the_returns_and_nothing_else(small, fill):
    model = fill(small(WNPG, "Pendulum-v1", n_steps=256, n_critic_updates=300, batch_size=64))
    rollout = next(model.rollout_buffer.get(batch_size=None))
    returns = rollout.observations[:, 0] - 2 * rollout.observations[:, 1]
    rollout = rollout._replace(returns=returns, advantages=torch.randn_like(returns))
    fit_critic(model, rollout)
    with torch.no_grad():
        error = (model.policy.predict_values(rollout.observations).flatten() - returns).square().mean()
    assert error < 0.1 * returns.var()


def test_kernel_metrics_of_other_seeds_draw_otherwise(small):
    zero, one = (small(WNPG, metric="kernel", n_basis=4, seed=seed).kernel_metric.generator.get_state() for seed in (0, 1))
    assert not torch.equal(zero, one)


def test_the_log_is_about_values_and_spread(small, fill):
    model = fill(small(WNPG, "Pendulum-v1"))
    model.train()
    buffer, logged = model.rollout_buffer, model.logger.name_to_value
    residual = (buffer.returns - buffer.values).var()
    assert logged["train/explained_variance"] == pytest.approx(1 - residual / buffer.returns.var(), rel=1e-4)
    assert logged["train/std"] == pytest.approx(model.policy.log_std.exp().mean().item())
