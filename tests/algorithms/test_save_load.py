"""A model that was saved and loaded is the model that was saved, whatever had evolved in it."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import set_random_seed
from torch.nn.utils import parameters_to_vector

from sb3_wng import BGPG, BGWNPG, ES, NPG, PG, SVPG, WNES, WNPG

# What evolves besides the policy, and where it lives
EVOLVING = {
    "adaptive damping": (WNPG, {"adaptive_damping": True, "cg_damping": 0.05}),
    "kernel": (WNPG, {"metric": "kernel", "n_basis": 10}),
    "kernel, adaptive damping": (WNPG, {"metric": "kernel", "n_basis": 10, "adaptive_damping": True}),
    "kernel, optimiser": (WNPG, {"metric": "kernel", "n_basis": 10, "step_rule": "optimizer", "policy_batch_size": 16}),
    "schedules": (WNPG, {"step_rule": "fixed_rate", "step_size": lambda remaining: 0.05 + 0.1 * remaining}),
    "npg": (NPG, {"adaptive_damping": True, "n_policy_updates": 2}),
    "pg": (PG, {"n_policy_updates": 3, "policy_batch_size": 16}),
    "adaptive coefficient": (BGPG, {"adaptive_coef": True, "policy_batch_size": 16, "n_policy_updates": 2}),
    "dual": (BGPG, {"distance": "dual", "policy_batch_size": 16, "n_policy_updates": 2}),
    "rollout before": (BGPG, {"distance": "dual", "embedding": "state_visitation", "embedding_horizon": 4}),
    "bgwnpg": (BGWNPG, {"distance": "sinkhorn", "policy_batch_size": 16, "adaptive_coef": True, "n_penalized_epochs": 2}),
}


@pytest.fixture
def reload(tmp_path):
    """Save a model and load it again."""

    def save_and_load(model, **settings):
        model.save(tmp_path / "model")
        return type(model).load(tmp_path / "model", device="cpu", **settings)

    return save_and_load


def check_equal_state(actual, expected):
    """Everything that set_parameters would bring back is the same, to the last bit."""
    torch.testing.assert_close(actual.get_parameters(), expected.get_parameters(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "action_space",
    [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)],
    ids=["box", "discrete", "multi-discrete", "multi-binary"],
)
def test_predictions_survive(build, chase, reload, action_space):
    model = build(chase(action_space)).learn(64)
    observations = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    loaded = reload(model)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)
    untrained, _ = build(chase(action_space)).predict(observations, deterministic=True)
    assert not np.array_equal(untrained, actions)


@pytest.mark.parametrize("evolving", EVOLVING)
def test_everything_that_evolves_comes_back(small, chase, reload, evolving):
    cls, settings = EVOLVING[evolving]
    model = small(cls, chase(), **settings).learn(96)
    model.natural_gradient.n_skipped += 2
    model.natural_gradient.n_fallbacks += 3
    loaded = reload(model)
    check_equal_state(loaded, model)
    assert loaded.natural_gradient.n_skipped == 2
    assert loaded.natural_gradient.n_fallbacks == 3
    assert loaded.natural_gradient.damping.value == model.natural_gradient.damping.value
    assert type(loaded.natural_gradient.damping) is type(model.natural_gradient.damping)
    assert loaded.policy.optimizer.state_dict()["state"]
    if model.adaptive_damping:
        assert loaded.natural_gradient.damping.value != model.cg_damping
    if model.metric == "kernel":
        generator = loaded.kernel_metric.generator.get_state()
        assert torch.equal(generator, model.kernel_metric.generator.get_state())
        fresh = small(cls, chase(), **settings).kernel_metric.generator.get_state()
        assert not torch.equal(generator, fresh)
    assert (loaded.num_timesteps, loaded._n_updates) == (96, 3)
    assert loaded.step_size_schedule(0.5) == model.step_size_schedule(0.5)


@pytest.mark.parametrize("evolving", EVOLVING)
def test_a_resumed_run_equals_an_uninterrupted_one(small, chase, fill, reload, weights, evolving):
    cls, settings = EVOLVING[evolving]
    model = small(cls, chase(), **settings).learn(96)
    loaded = reload(model)
    fill(model)
    before = weights(model)
    loaded.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    loaded._current_progress_remaining = model._current_progress_remaining
    loaded.set_logger(configure(None, []))
    for one in (model, loaded):
        set_random_seed(1)  # the order in which the buffer is read, and the minibatches
        one.train()
        one.train()
    assert not torch.equal(weights(model), before)
    check_equal_state(loaded, model)


def test_a_skipped_step_is_counted_across_a_save(build, fill, reload):
    model = fill(build("Pendulum-v1"))
    actor = [q.detach().clone() for q in model.actor_parameters]
    model.rollout_buffer.advantages[:] = np.nan
    model.train()
    n_batches = 1 if model.policy_batch_size is None else 32 // model.policy_batch_size
    n_steps = model.n_policy_updates * (1 if model.step_rule == "trust_region" else n_batches)
    n_steps += model.n_penalized_epochs * n_batches
    assert all(torch.equal(q, p) for q, p in zip(model.actor_parameters, actor, strict=True))
    assert reload(model).natural_gradient.n_skipped == n_steps


def test_a_loaded_model_learns_on(build, reload, weights):
    model = build("Pendulum-v1").learn(64)
    loaded = reload(model, env=model.env)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128
    assert loaded._n_updates == 4
    assert torch.isfinite(weights(loaded)).all()
    assert not torch.equal(weights(loaded), weights(model))
    # the optimiser and the splits of the policy refer to the policy that was loaded
    held = {id(parameter) for parameter in loaded.policy.parameters()}
    assert held == {id(q) for group in loaded.policy.optimizer.param_groups for q in group["params"]}
    assert held == {id(q) for q in (*loaded.actor_parameters, *loaded.critic_parameters)}


def test_an_environment_can_be_set_after_loading(build, reload):
    loaded = reload(build("Pendulum-v1").learn(32))
    assert loaded.env is None
    loaded.set_env(make_vec_env("Pendulum-v1"))
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 64


def test_another_number_of_environments_can_be_given_to_load(build, reload):
    loaded = reload(build("Pendulum-v1"), env=make_vec_env("Pendulum-v1", n_envs=3))
    assert loaded.learn(96)._n_updates == 1


def test_a_model_saved_before_training_can_be_loaded(build, reload):
    check_equal_state(reload(model := build("Pendulum-v1")), model)


def test_parameters_can_be_exchanged_between_models(build, weights):
    model, other = build(seed=1).learn(64), build(seed=2)
    parameters = model.get_parameters()
    assert not torch.equal(weights(other), weights(model))
    other.set_parameters(parameters)
    check_equal_state(other, model)
    held = {"policy", "policy.optimizer", "natural_gradient", "behavior_penalty"}
    assert set(parameters) == held | {"kernel_metric"}


def test_exact_matches_refuse_missing_and_unknown_parameters(build, weights):
    model, other = build(seed=1).learn(32), build(seed=2)
    parameters = model.get_parameters()
    with pytest.raises(ValueError, match="natural_gradient"):
        other.set_parameters({key: value for key, value in parameters.items() if key != "natural_gradient"})
    with pytest.raises(ValueError, match="unknown_module"):
        other.set_parameters({**parameters, "unknown_module": parameters["policy"]})
    policy = {key: value for key, value in parameters["policy"].items() if key != "action_net.bias"}
    with pytest.raises(RuntimeError, match=r"action_net\.bias"):
        other.set_parameters({**parameters, "policy": policy})
    other.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    assert torch.equal(weights(other), weights(model))


def test_custom_objects_replace_what_was_saved(build, reload):
    settings = {"learning_rate": 0.125, "n_critic_updates": 7, "lr_schedule": lambda remaining: 0.125}
    loaded = reload(build().learn(32), custom_objects=settings)
    assert loaded.learning_rate == loaded.lr_schedule(0.5) == 0.125
    assert loaded.n_critic_updates == 7


def test_settings_given_to_load_are_used(small, chase, reload, fill):
    model = small(WNPG, chase(), target_distance=0.02).learn(32)
    loaded = fill(reload(model, env=chase(), target_distance=0.005))
    loaded.train()
    assert loaded.natural_gradient.step_rule.radius == 0.005


def test_the_file_holds_no_object_that_can_be_rebuilt(build, tmp_path):
    model = build().learn(32)
    model.save(tmp_path / "model")
    data, parameters, variables = load_from_zip_file(tmp_path / "model", device="cpu")
    rebuilt = {"actor_parameters", "critic_parameters", "natural_gradient", "kernel_metric", "policy", "rollout_buffer"}
    assert not rebuilt & data.keys()
    assert not any(isinstance(value, (torch.Tensor, torch.nn.Module)) for value in data.values())
    assert not any(isinstance(value, list) and any(torch.is_tensor(v) for v in value) for value in data.values())
    assert set(parameters) == set(model.get_parameters())
    assert not variables
    assert (tmp_path / "model.zip").stat().st_size < 100_000


def test_saving_does_not_disturb_the_model(build, tmp_path, weights):
    model = build().learn(32)
    model.save(tmp_path / "model")
    assert model.actor_parameters
    assert model.learn(32, reset_num_timesteps=False)._n_updates == 2


def test_constants_given_to_load_act_and_states_come_back(small, chase, reload):
    model = small(BGWNPG, chase(), cg_damping=0.1, wasserstein_coef=1.0).learn(32)
    loaded = reload(model, env=chase(), cg_damping=10.0, wasserstein_coef=-5.0)
    assert loaded.natural_gradient.damping.value == 10
    assert loaded.penalty.coefficient == -5
    unguided = reload(loaded, env=chase(), wasserstein_coef=0.0)
    assert unguided.penalty is None
    assert reload(unguided.learn(32), wasserstein_coef=2.0, env=chase()).learn(32).penalty.coefficient == 2
    adaptive = reload(loaded, env=chase(), adaptive_damping=True, adaptive_coef=True, wasserstein_coef=1.0).learn(64)
    damping, coefficient = adaptive.natural_gradient.damping.value.item(), adaptive.penalty.coefficient.item()
    assert coefficient != 1
    assert reload(adaptive).natural_gradient.damping.value == damping
    assert reload(adaptive).penalty.coefficient == coefficient
    assert reload(adaptive, adaptive_damping=False, cg_damping=0.3).natural_gradient.damping.value == 0.3
    restarted = reload(adaptive, cg_damping=3.0, wasserstein_coef=7.0)
    assert (restarted.natural_gradient.damping.value, restarted.penalty.coefficient) == (3, 7)
    assert reload(restarted).penalty.coefficient == 7


def test_settings_given_to_load_are_checked_as_others(small, chase, reload):
    model = small(BGPG, "Pendulum-v1")
    with pytest.raises(ValueError, match="wasserstein_coef must be a finite number"):
        reload(model, wasserstein_coef=float("nan"))
    with pytest.raises(ValueError, match=r"dimension, shape \(m, 1\) for 'actions', got \(m, 2\)"):
        reload(model, env=gym.make("Pendulum-v1"), distance="sinkhorn", reference=np.zeros((3, 2)))
    loaded = reload(model, env=gym.make("Pendulum-v1"), distance="sinkhorn", embedding="final_state", reference=model)
    assert loaded.penalty.coefficient == loaded.wasserstein_coef == model.wasserstein_coef > 0
    assert loaded.learn(32).reference.shape[1] == 3
    assert reload(loaded, distance="kl", embedding="actions", reference=None, env=gym.make("Pendulum-v1")).learn(32)


class Own(WNPG):
    """Somebody's own."""


@pytest.mark.parametrize(
    ("saved", "loaded"), [(WNPG, NPG), (WNPG, BGWNPG), (WNPG, SVPG), (WNPG, ES), (ES, WNES), (SVPG, WNPG), (Own, BGPG)]
)
def test_a_file_of_another_algorithm_is_refused_with_its_name(saved, loaded, tmp_path):
    saved("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}).save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"of {saved.__name__}: use {saved.__name__}.load, not {loaded.__name__}.load"):
        loaded.load(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("saved", [PPO, A2C])
@pytest.mark.parametrize("loaded", [NPG, ES, SVPG])
def test_a_file_from_elsewhere_is_refused_and_its_policy_can_be_taken_over(saved, loaded, tmp_path):
    settings = {"policy_kwargs": {"net_arch": [4]}, "n_steps": 64, "device": "cpu"}
    other = saved("MlpPolicy", "CartPole-v1", **settings).learn(64)
    other.save(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"not saved by an algorithm of sb3_wng: .* not {loaded.__name__}\.load"):
        loaded.load(tmp_path / "model", device="cpu")
    model = NPG("MlpPolicy", "CartPole-v1", **settings)
    model.policy.load_state_dict(saved.load(tmp_path / "model", device="cpu").policy.state_dict())
    assert torch.equal(parameters_to_vector(model.policy.parameters()), parameters_to_vector(other.policy.parameters()))
    model.learn(64)


@pytest.mark.parametrize(("saved", "loaded"), [(Own, WNPG), (WNPG, Own)])
def test_files_of_a_class_and_of_its_base_are_exchanged(saved, loaded, tmp_path):
    saved("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}).save(tmp_path / "model")
    assert type(loaded.load(tmp_path / "model", device="cpu")) is loaded
