"""A population on SB3's terms: environments, spaces, callbacks, logs, save and load."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_wng import SVPG
from sb3_wng.envs import BatchedVecEnv, make_batched, make_task
from sb3_wng.envs.batched import ScalarEnv
from sb3_wng.population.rollouts import step_columns

ACTION_SPACES = [
    spaces.Box(-1, 1, (2,)),
    spaces.Box(-1, 1, (2, 2), dtype=np.float64),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
]
OBSERVATION_SPACES = [
    spaces.Box(-1, 1, (3,), dtype=np.float64),
    spaces.Box(-1, 1, (2, 2)),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)}),
]
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}


def check_that_it_trains(model):
    """All actors, and the critics where there are any, change; actions are actions."""
    actors = model.policy.theta.clone()
    critics = [[q.detach().clone() for q in particle.learner.critic_parameters] for particle in model.particles]
    model.learn(2 * model.n_steps * model.n_envs)
    assert torch.isfinite(model.policy.theta).all()
    assert (model.policy.theta != actors).any(dim=1).all()
    for particle, before in zip(model.particles, critics, strict=True):
        changes = [not torch.equal(q, p) for q, p in zip(particle.learner.critic_parameters, before, strict=True)]
        assert any(changes) == (model.kind.has_critic and bool(changes))
    actions, _ = model.predict(model.env.reset())
    assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_every_action_space_trains(small, chase, algorithm, action_space):
    check_that_it_trains(small(algorithm, lambda: chase(action_space)))


@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=lambda space: type(space).__name__)
def test_every_observation_space_trains(small, chase, observation_space):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    check_that_it_trains(small("wnpg", lambda: chase(observation_space=observation_space), policy))


@pytest.mark.parametrize("squash_output", [False, True])
def test_state_dependent_exploration_trains(small, algorithm, squash_output):
    check_that_it_trains(small(algorithm, use_sde=True, sde_sample_freq=4, policy_kwargs={"squash_output": squash_output}))


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images_train(small, share_features_extractor):
    kwargs = {**SMALL_CNN, "share_features_extractor": share_features_extractor}
    env = make_vec_env(lambda: FakeImageEnv(3, screen_height=36, screen_width=36), n_envs=2)
    check_that_it_trains(small("a2c", env, "CnnPolicy", kwargs, n_particles=2, n_steps=8))


def test_dictionaries_of_images_and_vectors_train(small):
    env = make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), n_envs=2)
    kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
    check_that_it_trains(small("wnpg", env, "MultiInputPolicy", kwargs, n_particles=2, n_steps=8))


def test_shared_normalisation_trains(small, algorithm, chase):
    model = small(algorithm, VecNormalize(make_vec_env(chase, n_envs=6)))
    check_that_it_trains(model)
    assert model.get_vec_normalize_env().obs_rms.count > 100
    assert np.isfinite(model.mean_returns).all()


@pytest.mark.parametrize("mode", ["svpg", "independent", "joint", "radial", "coupling"])
@pytest.mark.parametrize("name", ["pg", "wnpg"])
def test_every_mode_trains(small, name, mode):
    model = small(name, mode=mode)
    check_that_it_trains(model)
    assert len(model.policy) == (1 if mode == "joint" else 3)


@pytest.mark.parametrize("embedding", ["state_visitation", "action_sequence", lambda trajectory: trajectory.rewards.sum()])
@pytest.mark.parametrize("name", ["pg", "npg"])
def test_the_behaviour_kernel_trains(small, name, embedding):
    check_that_it_trains(small(name, kernel="behavior", embedding=embedding, embedding_horizon=5))


@pytest.mark.parametrize("name", ["pg", "a2c"])
@pytest.mark.parametrize("wrap", [False, True], ids=["batched", "normalised"])
def test_natively_batched_environments_train(small, name, wrap):
    env = make_batched("RllabCartPole-v0", 6, seed=0, max_episode_steps=12)
    check_that_it_trains(small(name, VecNormalize(env) if wrap else env))


def test_natively_batched_steps_are_those_of_the_same_environments_one_by_one():
    task = make_task("RllabCartPole-v0", max_episode_steps=7)

    def single():
        from gymnasium.wrappers import TimeLimit
        from stable_baselines3.common.monitor import Monitor

        return Monitor(TimeLimit(ScalarEnv(task), 7))

    batched, loop = BatchedVecEnv(task, 4, seed=3), DummyVecEnv([single] * 4)
    loop.seed(3)
    np.testing.assert_array_equal(batched.reset(), loop.reset())
    rng = np.random.default_rng(0)
    n_timeouts = 0
    for _ in range(30):
        actions = rng.uniform(-1, 1, (4, 1)).astype(np.float32)
        one, other = step_columns(batched, actions), step_columns(loop, actions)
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6)
        np.testing.assert_array_equal(one.dones, other.dones)
        assert [column for column, _ in one.timeouts] == [column for column, _ in other.timeouts]
        n_timeouts += len(one.timeouts)
        for (_, last), (_, expected) in zip(one.timeouts, other.timeouts, strict=True):
            np.testing.assert_array_equal(last, expected)
        for column in np.flatnonzero(one.dones):
            assert one.infos[column]["episode"]["r"] == pytest.approx(other.infos[column]["episode"]["r"], abs=1e-5)
            assert one.infos[column]["episode"]["l"] == other.infos[column]["episode"]["l"]
    assert n_timeouts > 0


def test_a_wrapper_around_a_batched_environment_is_not_passed_by():
    env = VecNormalize(make_batched("RllabCartPole-v0", 2, seed=0))
    env.reset()
    for _ in range(10):
        step = step_columns(env, np.zeros((2, 1), np.float32))
    assert np.abs(step.rewards).max() < 9  # the task's own are about 10


def test_values_returns_and_advantages_are_those_of_sb3(chase):
    settings = {"n_steps": 16, "gamma": 0.9, "gae_lambda": 0.8, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    model = SVPG("MlpPolicy", make_vec_env(chase, n_envs=4, seed=0), "a2c", n_particles=2, **settings)
    peers = [A2C("MlpPolicy", make_vec_env(chase, n_envs=4, seed=0), **settings) for _ in range(2)]
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)
    for peer, particle, share, columns in zip(peers, model.policy, model.shares(), model.columns, strict=True):
        # what SB3 would have stored for the same actions, by the same policy
        peer.policy.load_state_dict(particle.state_dict())
        peer.set_env(Replay(make_vec_env(chase, n_envs=4, seed=0), model.rollout_buffer.actions))
        _, callback = peer._setup_learn(64)
        peer.collect_rollouts(peer.env, callback, peer.rollout_buffer, 16)
        for name in ("observations", "rewards", "values", "returns", "advantages", "episode_starts"):
            mine, theirs = getattr(share, name), getattr(peer.rollout_buffer, name)[:, columns]
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


class Replay(VecNormalize):
    """Takes recorded actions, whatever it is told to do."""

    def __init__(self, venv, actions):
        super().__init__(venv, training=False, norm_obs=False, norm_reward=False)
        self.recorded = iter(actions)

    def step_async(self, actions):
        low, high = self.action_space.low, self.action_space.high
        self.venv.step_async(np.clip(next(self.recorded), low, high))


def test_without_a_critic_advantages_are_discounted_returns(small, fill, chase):
    model = fill(small("pg", lambda: chase(episode_length=100), gamma=0.9, n_steps=8))
    rewards = model.rollout_buffer.rewards
    expected = np.array([sum(0.9 ** (k - t) * rewards[k] for k in range(t, 8)) for t in range(8)])
    np.testing.assert_allclose(model.rollout_buffer.advantages, expected, rtol=1e-5)


def test_log_probabilities_are_those_of_the_particle_that_acted(small, fill, algorithm):
    model = fill(small(algorithm))
    for particle, share in zip(model.policy, model.shares(), strict=True):
        samples = next(share.get())
        with torch.no_grad():
            _, log_prob, _ = particle.evaluate_actions(samples.observations, samples.actions)
        torch.testing.assert_close(samples.old_log_prob, log_prob, rtol=1e-4, atol=1e-5)


def test_environments_must_divide_evenly(small, chase):
    with pytest.raises(ValueError, match=r"n_envs must be a multiple of n_particles=3, got 4.*n_envs_per_particle"):
        small("pg", make_vec_env(chase, n_envs=4))
    with pytest.raises(ValueError, match="n_envs must be a multiple"):
        small("pg", chase())
    assert small("pg", make_vec_env(chase, n_envs=4), mode="joint").n_envs == 4
    model = small("pg")
    model.env = make_vec_env(chase, n_envs=4)
    model.n_envs = 4
    with pytest.raises(ValueError, match="n_envs must be a multiple"):
        model.learn(10)


def test_an_environment_id_makes_one_environment_or_more_for_each_particle(small):
    assert small("pg", "Pendulum-v1").n_envs == 3
    assert small("pg", "Pendulum-v1", n_envs_per_particle=2).n_envs == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "ppo"}, "no one gradient of the return"),
        ({"algorithm": "sac"}, "algorithm must be one of 'a2c', 'pg', 'pg_linear', 'npg', 'wnpg'"),
        ({"n_particles": 0}, "n_particles must be an integer >= 1"),
        ({"initial_scale": 0.0}, "initial_scale must be a finite number > 0"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"temperature": lambda remaining: 10 * remaining}, "schedule gives 0.0 at a remaining progress of 0.0"),
        ({"behavior_coef": -1.0}, "behavior_coef must be"),
        ({"prior_std": -1.0}, "prior_std must be"),
        ({"bandwidth": "median"}, "bandwidth must be"),
        ({"mode": "shared"}, "mode must be one of"),
        ({"kernel": "behavior", "mode": "radial"}, "kernel='behavior'"),
        ({"kernel": "behavior", "embedding": "velocity"}, "embedding must be"),
        ({"selection_interval": 5}, "n_particles >= 4"),
        ({"algorithm_kwargs": {"gamma": 0.9}}, "pass gamma to SVPG itself"),
        ({"algorithm_kwargs": {"n_policy_updates": 3}}, "n_policy_updates must be 1"),
    ],
)
def test_bad_arguments_are_refused_with_what_to_do(small, settings, message):
    with pytest.raises(ValueError, match=message):
        small(**{"env": "Pendulum-v1", **settings})


def test_algorithms_may_be_given_as_classes(small):
    from sb3_wng import NPG, PG, WNPG

    for cls, name in ((A2C, "a2c"), (PG, "pg"), (NPG, "npg"), (WNPG, "wnpg")):
        settings = {} if cls is PG else {"algorithm_kwargs": {"batch_size": 16}}
        assert small(cls, "Pendulum-v1", **settings).algorithm == name


class Watch(BaseCallback):
    """Keeps what callbacks are shown; ends training after some steps."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.calls, self.episodes = last, [], 0

    def _on_step(self):
        names = ("new_obs", "actions", "clipped_actions", "rewards", "dones", "infos")
        self.calls.append([len(self.locals[name]) for name in names])
        self.episodes += sum("episode" in info for info in self.locals["infos"])
        return self.n_calls != self.last


@pytest.mark.parametrize("is_batched", [False, True])
def test_callbacks_see_every_step_and_can_end_training(small, is_batched):
    env = make_batched("RllabCartPole-v0", 6, seed=0, max_episode_steps=5) if is_batched else "Pendulum-v1"
    model, watch = small("pg", env), Watch()
    model.learn(16 * model.n_envs, callback=watch)
    assert watch.calls == [[model.n_envs] * 6] * 16
    assert watch.episodes == sum(len(returns) for returns in model.particle_returns)
    assert small("pg", env).learn(1000, callback=Watch(last=3)).num_timesteps == 3 * model.n_envs


@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=str)
@pytest.mark.parametrize("action_space", [ACTION_SPACES[0], ACTION_SPACES[2]], ids=str)
def test_a_callback_that_reads_the_rollout_leaves_every_particle_its_share(
    small, fill, chase, observation_space, action_space
):
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    model = fill(small("pg_linear", lambda: chase(action_space, observation_space), policy))
    whole = [vars(share) for share in model.shares()]
    next(model.rollout_buffer.get(batch_size=None))  # flattens it
    for expected, share in zip(whole, model.shares(), strict=True):
        for name, value in vars(share).items():
            np.testing.assert_equal(value, expected[name], err_msg=name)
    model.train()


def test_evaluation_uses_the_best_particle(small, chase, tmp_path):
    callback = EvalCallback(make_vec_env(chase), eval_freq=16, n_eval_episodes=1, best_model_save_path=tmp_path, verbose=0)
    model = small("a2c").learn(192, callback=callback)
    assert callback.best_mean_reward > -np.inf
    loaded = SVPG.load(tmp_path / "best_model", env=make_vec_env(chase), device="cpu")
    mean, _ = evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2)
    assert np.isfinite(mean)
    assert model.num_timesteps == 192


def test_returns_and_logs_are_kept_for_every_particle(small, chase):
    model = small("wnpg", stats_window_size=5)
    written = {}
    model.set_logger(configure(None, []))
    dump = model.logger.dump
    model.logger.dump = lambda step=0: (written.update(model.logger.name_to_value), dump(step))
    model.learn(2 * 16 * 6)
    keys = ["kernel_min", "kernel_mean", "kernel_max", "repulsion_ratio", "parameter_norm", "temperature", "value_loss", "std"]
    assert {f"train/{key}" for key in keys} <= written.keys()
    assert {f"particles/ep_rew_mean_{i:02d}" for i in range(3)} <= written.keys()
    assert written["rollout/ep_rew_mean_best"] == model.mean_returns.max() >= written["rollout/ep_rew_mean"]
    assert [len(returns) for returns in model.particle_returns] == [5, 5, 5]  # of the six of each particle


VARIANTS = {
    "pg": {},
    "pg_linear": {},
    "a2c": {},
    "npg": {"algorithm_kwargs": {"adaptive_damping": True}},
    "wnpg": {"algorithm_kwargs": {"metric": "kernel", "n_basis": 5}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_equals_an_uninterrupted_one(small, fill, tmp_path, name):
    model = small(name, **VARIANTS[name]).learn(192)
    model.save(tmp_path / "model")
    loaded = SVPG.load(tmp_path / "model", device="cpu")
    fill(model)
    before = model.policy.theta.clone()
    loaded.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    loaded._current_progress_remaining = model._current_progress_remaining
    loaded.set_logger(configure(None, []))
    for one in (model, loaded):
        set_random_seed(1)  # the order in which the buffer is read, and the minibatches
        one.train()
        one.train()
    assert not torch.equal(model.policy.theta, before)
    mine, theirs = loaded.get_parameters(), model.get_parameters()
    theirs["policy"]["best"] = mine["policy"]["best"]  # the other has collected one rollout more
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_loaded_population_is_the_one_saved_and_learns_on(small, algorithm, tmp_path):
    model = small(algorithm, temperature=lambda remaining: 1 + remaining).learn(192)
    model.save(tmp_path / "model")
    loaded = SVPG.load(tmp_path / "model", env=model.env, device="cpu")
    torch.testing.assert_close(loaded.get_parameters(), model.get_parameters(), rtol=0, atol=0)
    assert loaded.particle_returns == model.particle_returns
    observation = np.ones((2, 3), np.float32)
    for particle in (None, 0, 1, 2):
        mine, theirs = (m.predict(observation, deterministic=True, particle=particle)[0] for m in (loaded, model))
        np.testing.assert_array_equal(mine, theirs)
    loaded.learn(96, reset_num_timesteps=False)
    assert loaded.num_timesteps == 288
    assert not torch.equal(loaded.policy.theta, model.policy.theta)


def test_another_number_of_particles_is_refused_by_load(small, tmp_path):
    small("pg").save(tmp_path / "model")
    with pytest.raises(ValueError, match="n_particles: this file has 3, got 2: leave n_particles out to go on"):
        SVPG.load(tmp_path / "model", n_particles=2, device="cpu")


def test_another_number_of_environments_can_be_given_to_load(small, chase, tmp_path):
    small("pg").save(tmp_path / "model")
    assert SVPG.load(tmp_path / "model", env=make_vec_env(chase, n_envs=9)).learn(9 * 16).num_timesteps == 9 * 16
    single = SVPG.load(tmp_path / "model", env=chase())
    assert single.predict(single.env.reset())[0].shape == (1, 2)
    with pytest.raises(ValueError, match="multiple of n_particles"):
        single.learn(10)


def test_the_same_seed_gives_the_same_run(small, algorithm):
    one, other = (small(algorithm).learn(192) for _ in range(2))
    torch.testing.assert_close(one.policy.theta, other.policy.theta, rtol=0, atol=0)
