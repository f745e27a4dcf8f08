"""Populations that were changed: copied, loaded with other settings, frozen, given environments without Monitor."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_wng import SVPG, WassersteinPopulation


def test_a_copied_population_acts_with_what_it_learns(small, algorithm):
    model = small(algorithm).learn(1)
    copied = copy.deepcopy(model)
    learnt = []
    for either in (model, copied):
        set_random_seed(0)
        before = either.policy.theta.clone()
        either.learn(2 * either.n_steps * either.n_envs)
        learnt.append(either.policy.theta - before)
        rows = [torch.cat([q.detach().flatten() for q in particle.parameters]) for particle in either.particles]
        assert torch.equal(torch.stack(rows), either.policy.theta)
    assert learnt[0].any()
    assert torch.equal(*learnt)


@pytest.mark.parametrize(
    "settings", [{"mode": "nonsense"}, {"kernel": "behaviour"}, {"temperature": -3.0}, {"algorithm": "ppo"}], ids=str
)
def test_settings_given_to_load_are_checked(small, tmp_path, settings):
    small().save(tmp_path / "model")
    with pytest.raises(ValueError, match=next(iter(settings))):
        SVPG.load(tmp_path / "model", device="cpu", **settings)


def test_an_algorithm_can_be_given_to_load_by_its_class(small, tmp_path):
    small("a2c").save(tmp_path / "model")
    assert SVPG.load(tmp_path / "model", algorithm=A2C, device="cpu").algorithm == "a2c"


@pytest.mark.parametrize("distance", ["sinkhorn", "dual"])
def test_a_reference_can_be_given_to_load_and_taken_away(chase, tmp_path, distance):
    settings = {"distance": distance, "embedding_horizon": 4, "n_steps": 16, "seed": 0, "device": "cpu"}
    env = DummyVecEnv([chase] * 2)
    WassersteinPopulation("MlpPolicy", env, **settings).learn(64).save(tmp_path / "model")
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, seed=0, device="cpu")
    loaded = WassersteinPopulation.load(tmp_path / "model", env, reference=agent, device="cpu").learn(64, log_interval=9)
    assert loaded.logger.name_to_value["train/reference_distance"] > 0
    loaded.save(tmp_path / "model")
    without = WassersteinPopulation.load(tmp_path / "model", env, reference=None, device="cpu").learn(64, log_interval=9)
    assert without.logger.name_to_value["train/wasserstein_distance"] > 0
    assert "train/reference_distance" not in without.logger.name_to_value


def test_parameters_frozen_too_late_are_refused(small):
    model = small()
    for particle in model.policy:
        particle.action_net.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen or unfrozen"):
        model.learn(1)


@pytest.mark.parametrize("name", ["a2c", "pg", "pg_linear"])
def test_arguments_that_no_particle_reads_are_refused(small, name):
    with pytest.raises(ValueError, match="target_kl, step_rule would have no effect"):
        small(name, algorithm_kwargs={"target_kl": 0.01, "step_rule": "trust_region"})


class Valued(gym.Env):
    """Pays what the environment is worth, three steps long."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, value):
        self.value = value

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(2, np.float32), self.value, self.t == 3, False, {}


def test_the_best_particle_is_known_without_monitor():
    env = DummyVecEnv([lambda value=value: Valued(value) for value in (0.0, 1.0, 4.0, 5.0, 2.0, 3.0)])
    model = SVPG("MlpPolicy", env, "pg", n_particles=3, n_steps=8, seed=0, device="cpu").learn(48)
    assert model.mean_returns.tolist() == [1.5, 13.5, 7.5]
    assert int(model.policy.best) == 1
    model.learn(48, reset_num_timesteps=False)  # the third episode goes on across the rollouts
    assert model.mean_returns.tolist() == [1.5, 13.5, 7.5]


def test_a_particle_that_becomes_another_takes_over_its_damping(small):
    model = small("npg", algorithm_kwargs={"adaptive_damping": True})
    first, second = model.particles[:2]
    first.learner.natural_gradient.damping.value.fill_(7.0)
    second.become(first)
    assert second.learner.natural_gradient.damping.value == 7


@pytest.mark.parametrize("name", ["a2c", "npg", "wnpg"])
def test_the_critics_learning_rate_may_be_a_schedule(small, name):
    model = small(name, algorithm_kwargs={"learning_rate": lambda left: 1e-3 * left})
    model.learn(2 * model.n_steps * model.n_envs)
    rates = [particle.policy.optimizer.param_groups[0]["lr"] for particle in model.particles]
    assert rates == pytest.approx([0.0] * 3)


def test_returns_of_another_environment_do_not_count(small, chase):
    model = small("npg", n_particles=2).learn(64)
    assert np.isfinite(model.mean_returns).any()
    model.set_env(DummyVecEnv([chase] * model.n_envs))
    assert not np.isfinite(model.mean_returns).any()
    model.learn(64, reset_num_timesteps=False)
    assert np.isfinite(model.mean_returns).all()


def test_the_best_particle_stays_the_best_until_an_episode_has_ended(small):
    model = small("npg", "Pendulum-v1", n_particles=2, n_steps=16)
    model.policy.best.fill_(1)  # as it was saved, before set_env
    model.learn(2 * 16)
    assert not np.isfinite(model.mean_returns).any()
    assert model.policy.best == 1


def test_episodes_that_somebody_gave_up_do_not_count(small):
    model = small("npg", n_particles=2).learn(64)
    model._running_returns[:] = 1e6
    model._last_episode_starts[:] = True  # as after collect_trajectories
    model._setup_learn(64, reset_num_timesteps=False)
    assert (model._running_returns == 0).all()


def test_particles_without_critics_refuse_arguments_of_critics(small):
    with pytest.raises(ValueError, match=r"n_critic_updates would have no effect.*particles have no critics"):
        small("pg", algorithm_kwargs={"n_critic_updates": 5})


@pytest.mark.parametrize(
    "rebind",
    [
        lambda model: model.policy.load_from_vector(model.policy.parameters_to_vector()) or model,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
    ids=["vector", "pickle"],
)
def test_particles_whose_parameters_got_memory_of_their_own_learn_on(small, algorithm, rebind):
    model = small(algorithm, "Pendulum-v1").learn(48)
    learnt = []
    for either in (copy.deepcopy(model), rebind(copy.deepcopy(model))):
        set_random_seed(0)
        before = either.policy.theta.clone()
        either.set_env(make_vec_env("Pendulum-v1", n_envs=3, seed=0))
        either.learn(96)
        learnt.append(either.policy.theta - before)
        rows = [torch.cat([q.detach().flatten() for q in particle.parameters]) for particle in either.particles]
        assert torch.equal(torch.stack(rows), either.policy.theta)
    assert learnt[0].any()
    assert torch.equal(*learnt)


def test_a_vector_of_parameters_is_what_the_population_learns_from(small):
    model = small("pg", "Pendulum-v1")
    model.policy.load_from_vector(np.full_like(model.policy.parameters_to_vector(), 0.25))
    model.learn(48, callback=lambda *_: False)
    assert (model.policy.theta == 0.25).all()


def test_an_environment_for_a_population_that_was_loaded_without_one_leaves_its_returns(small, tmp_path):
    model = small("npg", n_particles=2).learn(64)
    model.save(tmp_path / "model")
    loaded = SVPG.load(tmp_path / "model", device="cpu")
    loaded.set_env(model.env)
    assert loaded.particle_returns == model.particle_returns


def test_a_kernel_metric_of_one_window_is_refused_at_once(small):
    kernel = {"metric": "kernel", "embedding": "final_state", "n_basis": 5}
    with pytest.raises(ValueError, match="embedding_horizon=32 makes one trajectory of a rollout of 1 x 16 steps"):
        small("wnpg", "Pendulum-v1", algorithm_kwargs=kernel)
    small("wnpg", "Pendulum-v1", algorithm_kwargs={**kernel, "embedding_horizon": 8}).learn(48)


@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_schedule_that_leaves_its_range_between_the_points_that_were_checked_is_refused(small, value):
    model = small("pg", "Pendulum-v1", temperature=lambda left: value if 0.1 < left < 0.4 else 1.0)
    with pytest.raises(ValueError, match=f"temperature must be a finite number > 0.*got {value}"):
        model.learn(48 * 5)


def test_returns_that_nobody_has_are_not_logged(small):
    model = small("pg", n_particles=4, n_steps=16, selection_interval=1).learn(1, log_interval=9)
    assert np.isinf(model.mean_returns).sum() == 1  # of the copy
    recorded = {}
    model.logger.record = lambda name, value, exclude=None: recorded.setdefault(name, value)
    model.dump_logs()
    particles = {name: value for name, value in recorded.items() if name.startswith("particles/")}
    assert len(particles) == 3
    assert np.isfinite(list(particles.values())).all()


def test_one_particles_overflow_leaves_the_behaviour_of_the_others(small, fill):
    model = fill(small("pg", kernel="behavior", embedding_horizon=4))
    before = model.policy.theta.clone()
    begin = model.begin_particles

    def overflow(in_order):
        begin(in_order)
        model.particles[1].advantages = torch.full_like(model.particles[1].advantages, torch.nan)

    model.begin_particles = overflow
    model.train()
    assert model.logger.name_to_value["train/n_unusable_gradients"] == 1
    moved = (model.policy.theta != before).any(dim=1)
    assert moved.tolist() == [True, False, True]


def test_actions_that_are_no_numbers_are_blamed_on_the_parameters(small):
    model = small("pg", "Pendulum-v1")
    model.policy.theta.fill_(1e30)
    with pytest.raises(ValueError, match=r"policy: non-finite actions.*lower learning_rate"):
        model.learn(48)


def test_episodes_end_where_a_callback_ends_training():
    env = DummyVecEnv([lambda: Valued(1.0)] * 2)
    model = SVPG("MlpPolicy", env, "pg", n_particles=2, n_steps=8, seed=0, device="cpu")
    calls = []
    model.learn(16, callback=lambda *_: calls.append(1) or len(calls) < 3)  # at the end of an episode
    model.learn(16, reset_num_timesteps=False)
    assert set(model.mean_returns) == {3.0}


def test_environments_per_particle_that_a_vec_env_decides_are_warned_of(small, chase):
    with pytest.warns(UserWarning, match="n_envs_per_particle has no effect with a VecEnv"):
        small("pg", n_envs_per_particle=2)
