import itertools
import json
import sys
import warnings
from copy import deepcopy

import gymnasium as gym
import numpy as np
import ot
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, TRPO, RecurrentPPO
from scipy.spatial.distance import cdist
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.utils import parameters_to_vector

from sb3_wng import WNPG, BehaviorCallback
from sb3_wng.behavior import callbacks, flat_actions, flat_observations

pytestmark = pytest.mark.filterwarnings("ignore:a rollout has .* windows", "ignore:You have specified a mini-batch size")

HORIZON = 4
EPISODES = (5, 9, 3, 4)  # lengths, in turn; every second one is truncated instead of terminated
BOX = spaces.Box(-0.5, 0.5, (2,))  # narrow: a Gaussian policy is clipped, and the actions of SAC are scaled
CHOICE = spaces.Discrete(3)
SMALL = {"policy_kwargs": {"net_arch": [4]}, "device": "cpu", "seed": 0}
ON = {**SMALL, "n_steps": 24}
OFF = {**SMALL, "learning_starts": 10, "buffer_size": 200, "batch_size": 4, "train_freq": 7, "gradient_steps": 1}


class Diary(gym.Env):
    """Observes its number, episode and step, and keeps a diary of what it was asked and what it answered."""

    def __init__(self, action_space=BOX, number=0):
        self.action_space = action_space
        self.observation_space = spaces.Box(-1, 1e3, (3,))
        self.number, self.episode, self.n_steps = number, -1, 0
        self.diary = []  # (observation, action, reward, whether the episode starts)

    def observation(self):
        return np.array([self.number, self.episode, self.n_steps], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.n_steps = self.episode + 1, 0
        return self.observation(), {}

    def step(self, action):
        reward = 100.0 * self.episode + self.n_steps + 0.5 * float(np.sum(action))
        self.diary.append((self.observation(), np.array(action), reward, self.n_steps == 0))
        self.n_steps += 1
        is_over, is_truncated = self.n_steps == EPISODES[self.episode % 4], self.episode % 2 == 1
        return self.observation(), reward, is_over and not is_truncated, is_over and is_truncated, {}


class Capture:
    """An embedding that keeps the windows that it was given."""

    is_pathwise = False

    def __init__(self):
        self.seen = []

    def __call__(self, trajectories):
        self.seen.append(trajectories)
        return torch.cat([trajectories.observations.mean(dim=1), trajectories.actions.mean(dim=1)], dim=1)


def diaries(n_envs, action_space=BOX):
    return DummyVecEnv([lambda number=number: Diary(action_space, number) for number in range(n_envs)])


def windows_of(env, first, last):
    """What the environments' own diaries say about steps first .. last - 1, by hand."""
    expected = []
    for diary in (environment.diary[first:last] for environment in env.envs):
        for i, (observation, action, reward, is_start) in enumerate(diary):
            if i == 0 or is_start or len(expected[-1][0]) == HORIZON:
                expected.append(([], [], []))
            one_hot = np.eye(CHOICE.n)[action] if action.ndim == 0 else action
            for part, value in zip(expected[-1], (observation, one_hot, reward), strict=True):
                part.append(value)
    return expected


def assert_windows(trajectories, expected):
    assert len(trajectories) == len(expected)
    for window, parts in zip(trajectories, expected, strict=True):
        for found, part in zip(window[:3], parts, strict=True):
            torch.testing.assert_close(found, torch.as_tensor(np.array(part)).float())


def read_log(folder):
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


def build(cls, env, policy="MlpPolicy", **settings):
    return cls(policy, env, **deepcopy(settings))  # SB3 adds to policy_kwargs in place


def cartpole():
    return build(PPO, "CartPole-v1", **SMALL, n_steps=128)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("cls", "policy", "action_space", "settings"),
    [
        (PPO, "MlpPolicy", BOX, {}),
        (PPO, "MlpPolicy", CHOICE, {}),
        (PPO, "MlpPolicy", BOX, {"use_sde": True, "policy_kwargs": {"net_arch": [4], "squash_output": True}}),
        (TRPO, "MlpPolicy", BOX, {}),
        (WNPG, "MlpPolicy", BOX, {}),
        (RecurrentPPO, "MlpLstmPolicy", BOX, {"policy_kwargs": {"lstm_hidden_size": 4}}),
    ],
    ids=["PPO", "PPO-discrete", "PPO-squashed", "TRPO", "WNPG", "RecurrentPPO"],
)
def test_windows_of_an_on_policy_rollout_are_what_the_environments_saw(cls, policy, action_space, settings, n_envs):
    env, capture = diaries(n_envs, action_space), Capture()
    model = build(cls, env, policy, **{**ON, **settings})
    model.learn(2 * 24 * n_envs, BehaviorCallback(capture, HORIZON))
    assert len(capture.seen) == 2
    assert_windows(capture.seen[0], windows_of(env, 0, 24))
    assert_windows(capture.seen[1], windows_of(env, 24, 48))


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    ("cls", "action_space", "settings"),
    [
        (SAC, BOX, {}),
        (TD3, BOX, {"action_noise": NormalActionNoise(np.zeros(2), np.ones(2))}),
        (DQN, CHOICE, {}),
    ],
    ids=["SAC", "TD3", "DQN"],
)
def test_windows_of_an_off_policy_rollout_are_what_the_environments_saw(cls, action_space, settings, n_envs):
    env, capture = diaries(n_envs, action_space), Capture()
    callback = BehaviorCallback(capture, HORIZON, every_n_steps=20 * n_envs)
    build(cls, env, **{**OFF, **settings}).learn(42 * n_envs, callback)
    assert len(capture.seen) == 2
    assert_windows(capture.seen[0], windows_of(env, 0, 20))
    assert_windows(capture.seen[1], windows_of(env, 20, 40))
    assert [steps for steps, _ in callback.distances] == [40 * n_envs]


def test_short_rollouts_are_put_together_and_their_windows_go_across():
    env, capture = diaries(2), Capture()
    build(A2C, env, n_steps=3, **SMALL).learn(80, BehaviorCallback(capture, HORIZON, every_n_steps=20))
    assert len(capture.seen) == 3
    assert_windows(capture.seen[0], windows_of(env, 0, 12))  # 4 rollouts of 3 steps, 24 >= 20 steps in all
    assert_windows(capture.seen[1], windows_of(env, 12, 24))


def test_an_off_policy_rollout_is_2048_steps():
    callback = BehaviorCallback(max_windows=100)
    build(DQN, diaries(1, CHOICE), **{**OFF, "learning_starts": 5000}).learn(2050, callback)
    assert callback.n_rollouts == 1
    assert callback.embeddings.shape == (100, 3)  # of 390 windows


@pytest.mark.parametrize(("cls", "settings"), [(PPO, ON), (SAC, OFF)], ids=["PPO", "SAC"])
def test_training_that_goes_on_keeps_its_record_and_a_new_run_starts_another(cls, settings):
    env, capture = diaries(1), Capture()
    callback = BehaviorCallback(capture, HORIZON, every_n_steps=24)
    model = build(cls, env, **settings).learn(24, callback)
    first = callback.embeddings
    model.learn(12, callback, reset_num_timesteps=False)
    model.learn(12, callback, reset_num_timesteps=False)
    assert len(callback.distances) == (2 if cls is PPO else 1)  # PPO collects 24 steps in any case
    assert not torch.equal(first, callback.embeddings)
    model.learn(24, callback)
    assert callback.distances == []


def test_no_window_goes_across_a_rollout_that_was_interrupted():
    env, capture = diaries(1), Capture()
    callback = BehaviorCallback(capture, HORIZON, every_n_steps=12)
    model = build(A2C, env, n_steps=6, **SMALL).learn(6, callback)
    model.learn(6, [callback, ConvertCallback(lambda *_: False)], reset_num_timesteps=False)
    model.learn(6, callback, reset_num_timesteps=False)
    assert capture.seen[0].lengths.tolist() == [4, 1, 1, 4, 2]  # step 5 starts an episode, step 6 is lost


class View(VecEnvWrapper):
    """Keeps what passes between an algorithm and its environments."""

    def reset(self):
        self.seen, self.observations = [], self.venv.reset()
        return self.observations

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        self.seen.append((self.observations, rewards.copy()))
        self.observations = observations
        return observations, rewards, dones, infos


@pytest.mark.parametrize(("cls", "settings"), [(PPO, ON), (SAC, OFF)], ids=["PPO", "SAC"])
def test_with_normalisation_the_windows_are_what_the_algorithm_sees(cls, settings):
    env, capture = View(VecNormalize(diaries(1))), Capture()
    build(cls, env, **settings).learn(24, BehaviorCallback(capture, HORIZON, every_n_steps=24))
    observations = torch.cat([window.observations for window in capture.seen[0]])
    rewards = torch.cat([window.rewards for window in capture.seen[0]])
    torch.testing.assert_close(observations, torch.as_tensor(np.concatenate([seen[0] for seen in env.seen[:24]])).float())
    torch.testing.assert_close(rewards, torch.as_tensor(np.concatenate([seen[1] for seen in env.seen[:24]])).float())


@pytest.mark.parametrize("max_windows", [20, 512])
def test_logged_numbers_equal_those_computed_from_the_embeddings(max_windows, tmp_path):
    reference, rollouts = np.random.default_rng(0).normal(size=(30, 4)), []
    callback = BehaviorCallback("state_visitation", 8, reference=reference, max_windows=max_windows)
    record = callback._record
    callback._record = lambda trajectories: (record(trajectories), rollouts.append(callback.embeddings.numpy()))
    model = cartpole()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(3 * 128, callback)

    def distance(first, second):
        weights = [np.full(len(points), 1 / len(points)) for points in (first, second)]
        return ot.emd2(*weights, cdist(first, second, "sqeuclidean"))

    log = read_log(tmp_path)
    assert "behavior/distance_to_previous" not in log[0]
    between = [distance(*pair) for pair in itertools.pairwise(rollouts)]
    assert [row["behavior/distance_to_previous"] for row in log[1:]] == pytest.approx(between)
    assert [value for _, value in callback.distances] == pytest.approx(between)
    assert [steps for steps, _ in callback.distances] == [256, 384]
    to_reference = [distance(points, reference) for points in rollouts]
    assert [row["behavior/distance_to_reference"] for row in log] == pytest.approx(to_reference)
    variance = [np.var(points, axis=0, ddof=1).sum() for points in rollouts]
    assert [row["behavior/spread"] for row in log] == pytest.approx(variance)
    assert [row["behavior/n_windows"] for row in log] == [len(points) for points in rollouts]
    assert max(len(points) for points in rollouts) <= max_windows


def test_distance_does_not_suffer_from_points_far_from_zero():
    points = torch.tensor([[0.0], [1e-3]], dtype=torch.float64)
    far = callbacks.squared_wasserstein_distance(points + 1e6, points + 1e6 + 1e-3)
    assert far == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize(("cls", "settings"), [(PPO, ON), (SAC, OFF), (DQN, OFF)], ids=["PPO", "SAC", "DQN"])
def test_training_is_the_same_with_and_without(cls, settings, tmp_path):
    def train(callback):
        model = build(cls, diaries(1, CHOICE if cls is DQN else BOX), **settings).learn(96, callback)
        model.save(tmp_path / "model")
        return parameters_to_vector(model.policy.parameters()), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002

    callback = BehaviorCallback(
        "state_visitation",
        HORIZON,
        every_n_steps=24,
        max_windows=5,
        reference=np.zeros((2, 3)),
        plot_dir=tmp_path,
        plot_every=1,
    )
    for with_callback, without in zip(train(callback), train(None), strict=True):
        assert (with_callback == without).all()
    assert len(callback.distances) >= 2


def test_the_same_run_is_recorded_twice_alike():
    first, second = (BehaviorCallback(embedding_horizon=2, max_windows=10) for _ in range(2))
    cartpole().learn(256, CallbackList([first, second]))
    torch.testing.assert_close(first.embeddings, second.embeddings, rtol=0, atol=0)
    assert first.distances == second.distances


class Sights(gym.Env):
    """An image and, in a dict, a vector and a number with it."""

    def __init__(self, is_dict):
        image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        parts = {"picture": image, "position": spaces.Box(-1, 1, (2,)), "a_room": spaces.Discrete(3)}
        self.observation_space = spaces.Dict(parts) if is_dict else image
        self.action_space = CHOICE
        self.is_dict = is_dict

    def reset(self, *, seed=None, options=None):
        self.n_steps = 0
        return self.observe(), {}

    def observe(self):
        image = np.zeros((36, 36, 3), dtype=np.uint8)
        image[0, 1, 2] = 51 * self.n_steps
        parts = {"picture": image, "position": np.array([self.n_steps / 5, -1.0], np.float32), "a_room": self.n_steps % 3}
        return parts if self.is_dict else image

    def step(self, action):
        self.n_steps += 1
        return self.observe(), 0.0, self.n_steps == 5, False, {}


@pytest.mark.parametrize(("cls", "settings"), [(PPO, {"n_steps": 10, "batch_size": 5}), (DQN, OFF)], ids=["PPO", "DQN"])
@pytest.mark.parametrize("is_dict", [False, True], ids=["image", "dict"])
def test_image_and_dict_observations_are_scaled_flattened_and_in_the_order_of_the_space(cls, settings, is_dict):
    capture = Capture()
    policy = "MultiInputPolicy" if is_dict else "CnnPolicy"
    policy_kwargs = {"features_extractor_kwargs": {"cnn_output_dim" if is_dict else "features_dim": 4}}
    model = build(cls, Sights(is_dict), policy, **{**SMALL, **settings, "policy_kwargs": policy_kwargs})
    model.learn(10, BehaviorCallback(capture, embedding_horizon=5, every_n_steps=10))
    observations = capture.seen[0].observations[1]
    image = torch.zeros(5, 3, 36, 36)  # channels first
    image[:, 2, 0, 1] = torch.arange(5) / 5
    if is_dict:
        position = torch.stack([torch.arange(5) / 5, -torch.ones(5)], dim=1)
        rooms = torch.eye(3)[torch.arange(5) % 3]
        torch.testing.assert_close(observations, torch.cat([rooms, image.flatten(1), position], dim=1))
    else:
        torch.testing.assert_close(observations, image.flatten(1))


def test_actions_are_one_hot_in_discrete_spaces_and_attached_in_boxes():
    assert flat_actions(np.array([[2.0], [0.0]]), CHOICE).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert flat_actions(np.array([2, 0]), CHOICE).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert flat_actions(np.array([[1, 2]]), spaces.MultiDiscrete([2, 3])).tolist() == [[0, 1, 0, 0, 1]]
    assert flat_actions(np.array([[1, 0]], dtype=np.int8), spaces.MultiBinary(2)).tolist() == [[1, 0]]
    actions = torch.ones(3, 2, 2, requires_grad=True)
    assert flat_actions(actions, spaces.Box(-1, 1, (2, 2))).shape == (3, 4)
    assert flat_actions(actions, spaces.Box(-1, 1, (2, 2))).requires_grad


def test_a_dict_is_flattened_in_the_order_of_its_space():
    space = spaces.Dict({"b": spaces.Box(-1, 1, (2, 2)), "a": spaces.Discrete(2)})
    observations = {"b": torch.arange(4.0).reshape(1, 2, 2), "a": torch.tensor([[1]])}
    assert flat_observations(observations, space).tolist() == [[0, 1, 0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (np.zeros(4), r"of shape \(m, d\), got float64 of shape \(4,\)"),
        (np.zeros((0, 4)), "m >= 1"),
        ([["a", "b"]], "array of m >= 1 embeddings"),
        (torch.tensor([[0.0, float("nan")]]), "finite"),
    ],
)
def test_a_bad_reference_is_refused_at_once(reference, message):
    with pytest.raises(ValueError, match=f"reference must .*{message}"):
        BehaviorCallback(reference=reference)


@pytest.mark.parametrize(("embedding", "dimension"), [("final_state", 4), ("action_sequence", 64), ("reward_to_go", 32)])
def test_a_reference_of_the_wrong_dimension_is_refused_before_the_first_step(embedding, dimension):
    model = cartpole()
    with pytest.raises(ValueError, match=rf"reference must .* \(m, {dimension}\) for '{embedding}', got \(5, 3\)"):
        model.learn(128, BehaviorCallback(embedding, reference=np.zeros((5, 3))))
    assert model.num_timesteps == 0
    model.learn(128, BehaviorCallback(embedding, reference=np.zeros((5, dimension))))


def test_a_reference_of_the_wrong_dimension_for_a_function_is_refused_at_the_first_rollout():
    with pytest.raises(ValueError, match=r"reference must .* \(m, 1\) for 'duration'"):
        cartpole().learn(128, BehaviorCallback(duration, reference=np.zeros((5, 3))))


def duration(trajectory):
    return len(trajectory.rewards)


def ragged(trajectory):
    return np.zeros(len(trajectory.rewards))


def drifting():
    lengths = iter([2, 3])
    return type("Drift", (Capture,), {"name": "drift", "__call__": lambda self, t: torch.zeros(len(t), next(lengths))})()


class Lost(Capture):
    def __call__(self, trajectories):
        return torch.zeros(len(trajectories) - 1, 2)


class Infinite(Capture):
    def __call__(self, trajectories):
        return torch.full((len(trajectories), 2), float("inf"))


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (ragged, "embedding 'ragged' must return"),
        (lambda trajectory: float("nan"), "embedding '<lambda>' returned non-finite"),
        (drifting(), "embedding 'drift' must return vectors of the same length .* 3 numbers after 2"),
        (Lost(), "embedding 'Lost' must return points of shape"),
        (Infinite(), "embedding 'Infinite' returned non-finite numbers"),
    ],
)
def test_an_embedding_that_fails_is_named(embedding, message):
    with pytest.raises(ValueError, match=message):
        cartpole().learn(256, BehaviorCallback(embedding))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": "actions"}, "embedding must be a function or one of"),
        ({"embedding_horizon": 0}, "embedding_horizon must be an integer >= 1"),
        ({"every_n_steps": 0}, "every_n_steps must be an integer >= 1"),
        ({"max_windows": None}, "max_windows must be an integer >= 1"),
        ({"plot_every": 2.5}, "plot_every must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BehaviorCallback(**settings)


def test_what_cannot_be_recorded_is_refused():
    with pytest.raises(ValueError, match="ARS is neither"):
        ARS("LinearPolicy", "CartPole-v1", n_delta=1, device="cpu").learn(100, BehaviorCallback())
    with pytest.raises(ValueError, match=r"must see every step: .* not to EveryNTimesteps"):
        cartpole().learn(128, EveryNTimesteps(10, BehaviorCallback()))


def test_few_windows_are_warned_about_once():
    callback = BehaviorCallback(embedding_horizon=100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cartpole().learn(256, callback)
    assert ["windows" in str(warning.message) for warning in caught].count(True) == 1


@pytest.mark.parametrize("output", ["tensorboard", "plot_dir", "none"])
def test_figures_go_where_they_were_asked_for(output, tmp_path, monkeypatch):
    drawn, draw = [], callbacks.draw_embeddings
    monkeypatch.setattr(callbacks, "draw_embeddings", lambda *args: drawn.append(args) or draw(*args))
    formats = ["csv", "json", "log", "stdout"] + (["tensorboard"] if output == "tensorboard" else [])
    plot_dir = tmp_path / "plots" / "new" if output == "plot_dir" else None
    model = cartpole()
    model.set_logger(configure(str(tmp_path), formats))
    model.learn(5 * 128, BehaviorCallback(plot_dir=plot_dir, plot_every=2))
    assert all(returns.max() > 1 for _, returns, *_ in drawn)  # of windows; a step pays one
    if output == "none":
        assert drawn == []
    elif output == "plot_dir":
        written = {path.name: path.read_bytes() for path in plot_dir.iterdir()}
        assert sorted(written) == [f"behavior_{steps:09d}.png" for steps in (256, 512, 640)]  # and the last one
        assert all(content.startswith(b"\x89PNG") and len(content) > 10_000 for content in written.values())
    else:
        events = EventAccumulator(str(tmp_path)).Reload()
        assert [image.step for image in events.Images("behavior/embeddings")] == [256, 512]
        assert "behavior/embeddings" not in read_log(tmp_path)[1]


def test_a_figure_shows_the_rollout_that_was_recorded_last(tmp_path):
    callback = BehaviorCallback(embedding_horizon=4, every_n_steps=24, plot_dir=tmp_path)
    build(SAC, diaries(1), **OFF).learn(40, callback)
    assert [path.name for path in tmp_path.iterdir()] == ["behavior_000000024.png"]


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 5), (8, 1), (8, 2), (8, 5), (8, 100)])
def test_points_of_any_dimension_are_drawn(n, d, tmp_path):
    points = [torch.randn(n, d, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
    for previous, reference in [(None, None), (points[1], points[2]), (torch.zeros(3, d).double(), None)]:
        callbacks.draw_embeddings(points[0], torch.zeros(n), previous, reference, "title").savefig(tmp_path / "figure.png")
    callbacks.draw_embeddings(torch.zeros(n, d).double(), torch.zeros(n)).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize("d", [4, 50])
def test_the_plane_is_that_of_the_two_largest_principal_components(d):
    points = torch.randn(12, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (first, second), names = callbacks.project([points[:5], points[5:]])
    assert (len(first), len(second)) == (5, 7)
    scores = torch.cat([first, second])
    variances = torch.linalg.eigvalsh(torch.cov(points.T)).flip(0)
    torch.testing.assert_close(torch.cov(scores.T), torch.diag(variances[:2]))
    assert f"{variances[0] / variances.sum():.0%}" in names[0]


def test_without_matplotlib_a_folder_for_figures_is_refused_and_tensorboard_does_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"sb3-wng\[plots\]"):
        BehaviorCallback(plot_dir=tmp_path)
    model = cartpole()
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    with pytest.warns(UserWarning, match=r"sb3-wng\[plots\]"):
        model.learn(128, BehaviorCallback(plot_every=1))


def test_works_in_a_list_with_an_evaluation(tmp_path):
    behavior = BehaviorCallback()
    evaluation = EvalCallback(gym.make("CartPole-v1"), eval_freq=100, n_eval_episodes=2, verbose=0, warn=False)
    model = cartpole()
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(256, [evaluation, behavior])
    assert len(behavior.distances) == 1
    assert {"eval/mean_reward", "behavior/distance_to_previous"} <= set().union(*read_log(tmp_path))


def test_a_child_of_an_evaluation_is_refused_before_training():
    evaluation = EvalCallback(gym.make("CartPole-v1"), callback_on_new_best=BehaviorCallback(), eval_freq=10, warn=False)
    with pytest.raises(ValueError, match="must see every step"):
        cartpole().learn(64, evaluation)


def test_a_training_too_short_to_record_anything_is_warned_of():
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=10, device="cpu")
    with pytest.warns(UserWarning, match="recorded nothing in 32 steps: every_n_steps is 2048"):
        model.learn(30, BehaviorCallback())


def test_a_callback_that_moves_to_other_environments_begins_anew():
    callback = BehaviorCallback(embedding_horizon=HORIZON)
    build(PPO, diaries(1), batch_size=24, **ON).learn(48, callback)
    assert len(callback.distances) == 1
    other = build(PPO, diaries(3), batch_size=24, **ON).learn(72)
    other.learn(72, callback, reset_num_timesteps=False)
    assert callback.distances == []
