"""What a fixed behaviour is compared with is what the policy does there: in the environment's own numbers, step for step."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_wng import BGPG, WNPG, WassersteinPopulation
from sb3_wng.behavior import FinalState, Trajectory, collect_trajectories, reference_points

HORIZON = 5
SAMPLED = {"distance": "sinkhorn", "embedding_horizon": HORIZON}


class Spy(gym.Env):
    """Pays one per step and keeps the actions that it gets."""

    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 1]))

    def __init__(self):
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.full(3, 0.5, np.float32), {}

    def step(self, action):
        self.actions.append(np.array(action))
        return np.full(3, 0.5, np.float32), 1.0, False, False, {}


class Seen:
    """An embedding that keeps what it was given."""

    is_pathwise = False

    def __init__(self):
        self.windows = []

    def __call__(self, trajectories):
        self.windows.append(trajectories)
        return trajectories.rewards.sum(dim=1, keepdim=True)


POLICIES = {
    "clipped": {"policy_kwargs": {"log_std_init": 1.0}},
    "squashed": {"use_sde": True, "policy_kwargs": {"squash_output": True, "log_std_init": 1.0}},
}


@pytest.mark.parametrize("case", POLICIES)
@pytest.mark.parametrize("population", [False, True], ids=["alone", "population"])
def test_actions_are_compared_as_the_environment_got_them_and_rewards_as_it_gave_them(case, population):
    spy, seen = Spy(), Seen()
    limited = TimeLimit(spy, 7)  # where SB3 adds values to rewards
    common = {"n_steps": 20, "embedding": seen, "reference": np.zeros((4, 1)), "seed": 0, **POLICIES[case]}
    if population:
        env = DummyVecEnv([lambda: limited])
        model = WassersteinPopulation("MlpPolicy", env, n_policies=1, embedding_horizon=HORIZON, device="cpu", **common)
    else:
        model = BGPG("MlpPolicy", limited, batch_size=20, **SAMPLED, **common)
    seen.windows.clear()
    model.learn(40)
    assert len(seen.windows) >= 2
    for rollout, windows in enumerate(seen.windows[-2:]):
        played = np.stack(spy.actions)[20 * rollout : 20 * rollout + 20]
        np.testing.assert_allclose(windows.actions[windows.mask].numpy(), played, rtol=1e-5, atol=1e-5)
        assert (windows.rewards[windows.mask] == 1).all()
    assert np.abs(played).max() > 1  # more than a squashed action


@pytest.mark.parametrize("case", POLICIES)
def test_a_policy_is_near_its_own_actions(case):
    """Samples of the law of actions are mapped to what is played, so that a policy's own behaviour is no distance away."""
    guide = BGPG("MlpPolicy", TimeLimit(Spy(), 10), n_steps=400, seed=0, **POLICIES[case])
    reference = collect_trajectories(guide, n_steps=400, horizon=1)
    model = BGPG("MlpPolicy", TimeLimit(Spy(), 10), n_steps=400, distance="sinkhorn", reference=reference, **POLICIES[case])
    model.policy.load_state_dict(guide.policy.state_dict())
    law = model.action_law(torch.full((400, 3), 0.5))
    model.penalty.begin(law)
    points = model.penalty._points(law, model.penalty._noise(law))
    own = torch.as_tensor(model.reference)
    assert (points >= torch.tensor([-2.0, 0.0]) - 1e-6).all()
    assert (points <= torch.tensor([2.0, 1.0]) + 1e-6).all()
    torch.testing.assert_close(points.mean(dim=0), own.mean(dim=0), rtol=0, atol=0.25)
    torch.testing.assert_close(points.std(dim=0), own.std(dim=0), rtol=0.2, atol=0.05)
    raw = law.mean + law.std * model.penalty._noise(law)[0]
    assert raw.abs().max() > 2.5


def test_an_agent_with_state_dependent_noise_shows_more_than_one_noise():
    model = PPO("MlpPolicy", TimeLimit(Spy(), 50), use_sde=True, n_steps=64, device="cpu", seed=0)
    actions = collect_trajectories(model, n_steps=40, horizon=HORIZON).actions[:, :, 0]
    assert (actions.std(dim=1) < 1e-6).all()  # one observation, and one noise matrix per window
    assert actions[:, 0].std() > 0.1
    still = collect_trajectories(model, n_steps=40, horizon=HORIZON, deterministic=True).actions
    assert still.flatten(end_dim=1).std(dim=0).max() < 1e-6


def test_frames_stacked_after_normalisation_are_refused_with_the_order_to_use():
    def stacked():
        return VecFrameStack(VecNormalize(DummyVecEnv([lambda: TimeLimit(Spy(), 10)])), 3)

    model = PPO("MlpPolicy", stacked(), n_steps=16, device="cpu")
    with pytest.raises(ValueError, match="wrap VecNormalize around it"):
        collect_trajectories(model, n_steps=10)
    settings = {"embedding": "final_state", "reference": np.zeros((4, 9)), **SAMPLED}
    with pytest.raises(ValueError, match="wrap VecNormalize around it"):
        BGPG("MlpPolicy", stacked(), **settings)
    BGPG("MlpPolicy", VecNormalize(VecFrameStack(DummyVecEnv([Spy]), 3)), n_steps=16, batch_size=16, **settings)


def test_demonstrations_are_cut_into_windows():
    def walk(n):
        return Trajectory(
            torch.arange(float(n))[:, None], torch.arange(float(n))[:, None], torch.ones(n), torch.tensor([-1.0])
        )

    points = reference_points([walk(3), walk(12)], None, horizon=HORIZON)
    np.testing.assert_array_equal(points[:, 0], [*range(3), *range(12)])
    embedding = Seen()
    points = reference_points([walk(3), walk(12)], embedding, horizon=HORIZON)
    np.testing.assert_array_equal(points[:, 0], [3, 5, 5, 2])
    assert embedding.windows[0].final_observations is None  # a rollout's windows, which they meet, do not know theirs
    ends = reference_points([walk(3), walk(12)], FinalState(), horizon=HORIZON)
    np.testing.assert_array_equal(ends[:, 0], [2, 4, 9, 11])
    assert embedding.windows[0].actions.shape == (4, HORIZON, 1)
    model = BGPG("MlpPolicy", "Pendulum-v1", n_steps=64, embedding="action_sequence", reference=[walk(3), walk(12)], **SAMPLED)
    assert model.reference.shape == (4, HORIZON)


def test_a_demonstration_has_one_observation_and_action_per_reward():
    for n_observations, n_actions in ((4, 3), (3, 1), (2, 3)):
        demonstration = Trajectory(torch.ones(n_observations, 1), torch.ones(n_actions, 1), torch.ones(3))
        with pytest.raises(ValueError, match=f"{n_observations} observations, {n_actions} actions and 3 rewards"):
            reference_points([demonstration], FinalState(), horizon=HORIZON)


def test_windows_of_another_length_are_refused():
    demonstrations = collect_trajectories(PPO("MlpPolicy", "Pendulum-v1", device="cpu"), n_steps=30, horizon=8)
    with pytest.raises(ValueError, match="windows have 8 steps, those that they are compared with 5: pass embedding_horizon"):
        BGPG("MlpPolicy", "Pendulum-v1", embedding="state_visitation", reference=demonstrations, **SAMPLED)


def test_a_reference_has_no_resampled_actions():
    with pytest.raises(ValueError, match="pass embedding='actions'"):
        BGPG("MlpPolicy", "Pendulum-v1", embedding="actions_and_values", reference=np.zeros((4, 1)), **SAMPLED)


def test_paths_of_squashed_actions_start_where_the_rollout_was():
    """The noise that a kernel metric reparametrises is what the actions were made of, before they were squashed."""
    policy = {"squash_output": True, "log_std_init": -1.0, "net_arch": [8]}
    model = WNPG(
        "MlpPolicy", TimeLimit(Spy(), 10), n_steps=40, batch_size=20, metric="kernel", embedding="action_sequence", n_basis=3,
        embedding_horizon=HORIZON, use_sde=True, policy_kwargs=policy, seed=0,
    )  # fmt: skip
    model.policy.action_net.bias.data += 1.5
    points = []
    kernel_metric = model.kernel_metric.forward
    model.kernel_metric.forward = lambda sample, **kwargs: (
        points.append(sample.embeddings.detach()) or kernel_metric(sample, **kwargs)
    )
    model.learn(40)
    taken = torch.as_tensor(model.rollout_buffer.actions).reshape(8, HORIZON * 2)
    torch.testing.assert_close(points[0], taken, rtol=1e-3, atol=1e-3)


def standing(env):
    """Where each pendulum of a DummyVecEnv stands, as it is observed."""
    return np.stack([inner.unwrapped._get_obs() for inner in env.unwrapped.envs])


@pytest.mark.parametrize("how", ["its own", "the one it was made of", "inside another normalisation"])
def test_training_goes_on_from_where_the_environment_is(how):
    raw = gym.make("Pendulum-v1")
    vec = VecNormalize(DummyVecEnv([lambda: raw]))
    model = PPO("MlpPolicy", raw if how == "the one it was made of" else vec, n_steps=16, batch_size=16, device="cpu").learn(
        16
    )
    env = {
        "its own": None,
        "the one it was made of": raw,
        "inside another normalisation": VecNormalize(DummyVecEnv([lambda: raw])),
    }
    before = None if how == "the one it was made of" else vec.obs_rms.mean.copy()
    collect_trajectories(model, env[how], n_steps=40)
    seen = model._last_obs if before is None else vec.get_original_obs()
    np.testing.assert_allclose(seen, standing(model.env), atol=1e-5)
    assert model._last_episode_starts.all()
    if before is not None:
        np.testing.assert_array_equal(vec.obs_rms.mean, before)
    model.learn(16, reset_num_timesteps=False)


def test_another_environment_leaves_training_alone():
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu").learn(16)
    last = model._last_obs
    collect_trajectories(model, "Pendulum-v1", n_steps=40)
    assert model._last_obs is last


def test_a_callback_may_collect_between_rollouts():
    class Collect(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            collect_trajectories(self.model, n_steps=40)

    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu").learn(48, Collect())
    assert model.num_timesteps == 48


@pytest.mark.parametrize("cls", [BGPG, WassersteinPopulation])
def test_a_seed_fixes_the_reference_that_an_agent_leaves(cls, monkeypatch):
    closed = []
    monkeypatch.setattr(DummyVecEnv, "close", lambda env: closed.append(env))
    agent = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, seed=0)
    settings = {"embedding": "state_visitation", "embedding_horizon": 8, "distance": "sinkhorn", "n_steps": 64}
    references = []
    for seed in (0, 0, 1, None):
        torch.manual_seed(len(references))  # what happened before does not matter
        model = cls("MlpPolicy", "Pendulum-v1", reference=(agent, "Pendulum-v1"), seed=seed, device="cpu", **settings)
        references.append(np.asarray(model.reference))
    assert len(closed) == 4  # those that were made for it
    np.testing.assert_array_equal(references[0], references[1])
    assert (references[0] != references[2]).any()
    assert (references[0] != references[3]).any()


def test_seeded_trajectories_leave_the_random_numbers_of_others_alone():
    agent = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, seed=0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, other = (collect_trajectories(agent, "Pendulum-v1", n_steps=64, horizon=8, seed=4) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.observations, other.observations)


def test_seeded_trajectories_do_not_repeat_the_exploration_and_the_episodes_of_training():
    agent = DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=100)
    draws, starts = [], []
    for _ in range(2):
        agent.learn(8, reset_num_timesteps=False)
        collect_trajectories(agent, n_steps=16, horizon=8, seed=4)
        draws.append([agent.action_space.sample() for _ in range(20)])
        starts.append(agent._last_obs)
    assert draws[0] != draws[1]
    assert (starts[0] != starts[1]).any()


def test_agents_that_draw_from_numpy_are_seeded_too():
    agent = DQN("MlpPolicy", "CartPole-v1", seed=0, learning_starts=0, buffer_size=10)
    agent.exploration_rate = 0.5
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = (collect_trajectories(agent, "CartPole-v1", n_steps=64, horizon=8, seed=4) for _ in range(2))
    assert torch.equal(one.actions, other.actions)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def spies(n_envs, n_steps=7):
    return DummyVecEnv([lambda: TimeLimit(Spy(), n_steps)] * n_envs)


class Named(gym.ObservationWrapper):
    observation_space = spaces.Dict({"all": Spy.observation_space})

    def observation(self, observation):
        return {"all": observation}


def test_stacked_frames_of_dictionaries_are_refused_too():
    env = VecFrameStack(VecNormalize(DummyVecEnv([lambda: Named(TimeLimit(Spy(), 10))])), 3)
    with pytest.raises(ValueError, match="wrap VecNormalize around it"):
        collect_trajectories(PPO("MultiInputPolicy", env, n_steps=16, device="cpu"), n_steps=10)


def test_windows_of_an_agent_end_with_its_episodes():
    agent = PPO("MlpPolicy", spies(1), n_steps=8, batch_size=8, device="cpu")
    assert collect_trajectories(agent, n_steps=20, horizon=HORIZON).lengths.tolist() == [5, 2, 5, 2, 5, 1]


@pytest.mark.parametrize(("n_steps", "n_collected"), [(4, 6), (1, 3)])
def test_every_environment_takes_the_same_number_of_steps_and_one_at_least(n_steps, n_collected):
    agent = PPO("MlpPolicy", spies(3), n_steps=8, batch_size=8, device="cpu")
    assert collect_trajectories(agent, n_steps=n_steps, horizon=HORIZON).mask.sum() == n_collected


def test_an_agent_with_a_memory_keeps_it(monkeypatch):
    agent = PPO("MlpPolicy", spies(1), n_steps=8, batch_size=8, device="cpu")
    given, predict = [], agent.predict

    def remember(*args, state, **kwargs):
        given.append(state)
        return predict(*args, **kwargs)[0], len(given)

    monkeypatch.setattr(agent, "predict", remember)
    collect_trajectories(agent, n_steps=4)
    assert given == [None, 1, 2, 3]


def test_noise_is_drawn_as_often_as_in_training():
    agent = PPO("MlpPolicy", TimeLimit(Spy(), 50), use_sde=True, sde_sample_freq=1, n_steps=64, device="cpu", seed=0)
    actions = collect_trajectories(agent, n_steps=40, horizon=HORIZON).actions[:, :, 0]
    assert (actions.std(dim=1) > 1e-3).all()


def test_a_demonstration_without_a_step_is_refused():
    empty, walk = (Trajectory(torch.zeros(n, 1), torch.zeros(n, 1), torch.ones(n)) for n in (0, 3))
    with pytest.raises(ValueError, match="at least one step"):
        reference_points([walk, empty], None, horizon=HORIZON)
