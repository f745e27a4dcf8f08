"""The batched VecEnv against DummyVecEnv of the Gymnasium environments, bit for bit, and both against the checkers."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3 import A2C
from stable_baselines3.common.env_checker import check_env as check_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from sb3_wng.envs import make_batched
from sb3_wng.envs.batched import TASKS, make_task

ids = pytest.mark.parametrize("env_id", TASKS)
VARIANTS = [
    *((env_id, {}) for env_id in TASKS),
    ("RllabCartPoleSwingUp-v0", {"observation": "raw"}),
    ("RllabDoublePendulum-v0", {"observation": "raw"}),
    ("HillGrid-v0", {"observation": "one_hot", "timeout": 30}),
    ("TwoGoals-v0", {"goals": [[1, 1], [-1, 1], [0, -2]], "extent": 2.0}),
]


def actions_of(env, n_steps, seed=0):
    """Actions that stay the same for a while, so that the systems move; some outside a box."""
    rng = np.random.default_rng(seed)
    shape = (n_steps // 10 + 1, env.num_envs)
    if isinstance(env.action_space, gym.spaces.Discrete):
        drawn = rng.integers(0, env.action_space.n, shape)
    else:
        drawn = rng.uniform(-1.2, 1.2, (*shape, *env.action_space.shape)).astype(np.float32)
    return np.repeat(drawn, 10, axis=0)[:n_steps]


@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_columns_equal_scalar_environments_step_by_step(env_id, options):
    n_envs = 5
    batched = make_batched(env_id, n_envs, seed=7, **options)
    scalar = make_vec_env(env_id, n_envs, seed=7, env_kwargs=options)
    assert batched.observation_space == scalar.observation_space
    assert batched.action_space == scalar.action_space
    np.testing.assert_array_equal(batched.reset(), scalar.reset())
    n_ended = 0
    for actions in actions_of(batched, 600):
        if isinstance(batched.action_space, gym.spaces.Box):  # as SB3's algorithms do
            actions = actions.clip(-1, 1)
        observations, rewards, dones, infos = batched.step(actions)
        expected = scalar.step(actions)
        for ours, theirs in zip((observations, rewards, dones), expected[:3], strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        for done, info, other in zip(dones, infos, expected[3], strict=True):
            assert info.get("TimeLimit.truncated", False) == other["TimeLimit.truncated"]
            if done:
                n_ended += 1
                np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
                assert (info["episode"]["r"], info["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
            else:
                assert info == {}
    assert n_ended >= n_envs


@ids
def test_what_a_column_sees_does_not_depend_on_the_number_of_columns(env_id):
    wide, narrow = make_batched(env_id, 37, seed=3), make_batched(env_id, 2, seed=3)
    np.testing.assert_array_equal(wide.reset()[:2], narrow.reset())
    for actions in actions_of(wide, 700):
        step, expected = wide.step_batch(actions), narrow.step_batch(actions[:2])
        for ours, theirs in zip(step, expected, strict=True):
            np.testing.assert_array_equal(ours[:2], theirs)


@ids
def test_start_states_are_the_same_drawn_at_once_or_one_by_one(env_id):
    task = make_task(env_id)
    at_once = task.reset(np.random.default_rng(5), 6)
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(at_once, np.concatenate([task.reset(rng, 1) for _ in range(6)]))


@ids
def test_stepping_leaves_its_arguments_and_earlier_results_alone(env_id):
    env = make_batched(env_id, 4, seed=0)
    first = env.reset()
    kept = first.copy()
    actions = actions_of(env, 1)[0]
    given = actions.copy()
    step = env.step_batch(actions)
    saved = [part.copy() for part in step]
    for later in actions_of(env, 60, seed=1):
        env.step_batch(later)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(actions, given)
    for part, copy in zip(step, saved, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("env_id", ["RllabCartPole-v0", "TwoGoals-v0"])
def test_batch_steps_report_ends_returns_and_final_observations(env_id):
    env = make_batched(env_id, 8, seed=0)
    env.reset()
    returns, lengths = np.zeros(8), np.zeros(8, int)
    n_terminated = n_truncated = 0
    for actions in actions_of(env, 100):
        step = env.step_batch(actions)
        returns, lengths = returns + step.rewards, lengths + 1
        np.testing.assert_array_equal(step.returns, returns)
        np.testing.assert_array_equal(step.lengths, lengths)
        ended = step.terminated | step.truncated
        np.testing.assert_array_equal(step.observations[~ended], step.final_observations[~ended])
        assert (step.observations[ended] != step.final_observations[ended]).any(axis=1).all()
        returns[ended], lengths[ended] = 0, 0
        n_terminated += step.terminated.sum()
        n_truncated += step.truncated.sum()
    assert (n_terminated > 0, n_truncated > 0) == ((True, False) if env_id == "RllabCartPole-v0" else (False, True))


def test_a_seed_repeats_the_run_and_a_reset_without_one_goes_on():
    env = make_batched("RllabCartPoleSwingUp-v0", 3, seed=1)
    first, second = env.reset(), env.reset()
    assert (first != second).any(axis=1).all()
    env.seed(1)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)
    assert (make_batched("RllabCartPoleSwingUp-v0", 3).reset() != first).any()
    assert len({tuple(row) for row in first.tolist()}) == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("env_id", "options"), VARIANTS)
def test_the_checkers_of_gymnasium_and_sb3_have_nothing_to_say(env_id, options):
    env = gym.make(env_id, render_mode="rgb_array", **options)
    with warnings.catch_warnings():
        if options.get("observation") == "raw":  # an angle that is not wrapped has no bound
            warnings.filterwarnings("ignore", message=".*infinity.*")
        check_gymnasium(env.unwrapped)
        check_sb3(env)


@ids
def test_registered_time_limits_are_the_tasks_own(env_id):
    assert gym.spec(env_id).max_episode_steps == make_task(env_id).max_episode_steps


def test_max_episode_steps_shortens_both_forms():
    scalar = gym.make("RllabDoublePendulum-v0", max_episode_steps=3)
    scalar.reset(seed=0)
    assert [scalar.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]
    batched = make_batched("RllabDoublePendulum-v0", 2, max_episode_steps=3)
    batched.reset()
    assert [batched.step(np.zeros((2, 1)))[2].all() for _ in range(3)] == [False, False, True]


@ids
def test_pictures_show_the_state_and_tile(env_id):
    env = make_batched(env_id, 2, seed=0, render_mode="rgb_array")
    env.reset()
    before = env.get_images()
    assert before[0].dtype == np.uint8
    assert before[0].shape[2] == 3
    for actions in actions_of(env, 8):
        env.step(np.ones_like(actions))
    assert (env.get_images()[0] != before[0]).any()
    assert env.render().shape[1] >= before[0].shape[1]
    np.testing.assert_array_equal(env.env_method("render", indices=1)[0], env.get_images()[1])


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_wrappers_of_sb3_work_on_top():
    env = VecFrameStack(VecNormalize(VecMonitor(make_batched("TwoGoals-v0", 4, seed=0))), 2)
    assert env.reset().shape == (4, 4)
    for actions in actions_of(env, 20):
        *_, infos = env.step(actions)
    assert {info["terminal_observation"].shape for info in infos} == {(4,)}
    assert infos[0]["episode"]["l"] == 20


def test_sb3_learns_and_evaluates_on_a_batch():
    env = make_batched("TwoGoals-v0", 16, seed=0)
    model = A2C("MlpPolicy", env, seed=0, n_steps=20, learning_rate=3e-3, device="cpu")
    before, _ = evaluate_policy(model, env, n_eval_episodes=16)
    model.learn(10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no complaint about a missing Monitor
        after, _ = evaluate_policy(model, env, n_eval_episodes=16)
    assert len(model.ep_info_buffer) > 0
    assert after > before + 5


def test_attributes_are_the_tasks_and_change_for_all_columns_only():
    env = make_batched("HillGrid-v0", 3)
    assert env.get_attr("timeout") == [40, 40, 40]
    env.set_attr("timeout", 30)
    assert env.get_attr("timeout", indices=[0, 2]) == [30, 30]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    with pytest.raises(ValueError, match="without indices"):
        env.set_attr("timeout", 50, indices=1)
    with pytest.raises(ValueError, match="no option"):
        env.set_attr("heights", 0)
    with pytest.raises(ValueError, match="make a new environment"):
        env.set_attr("observation", "one_hot")
    with pytest.raises(AttributeError):
        env.get_attr("heights")


def test_bad_calls_say_what_to_do():
    with pytest.raises(ValueError, match=r"has no batched form; these have: RllabCartPole-v0.*make_vec_env"):
        make_batched("CartPole-v1", 4)
    with pytest.raises(ValueError, match="n_envs must be at least 1"):
        make_batched("TwoGoals-v0", 0)
    with pytest.raises(ValueError, match="render_mode must be"):
        make_batched("TwoGoals-v0", 1, render_mode="human")
    env = make_batched("TwoGoals-v0", 4)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros((4, 2)))
    env.reset()
    with pytest.raises(ValueError, match=r"actions must be \(4, 2\)"):
        env.step(np.zeros((4, 1)))
    scalar = gym.make("TwoGoals-v0", disable_env_checker=True)
    scalar.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(2,\)"):
        scalar.step(np.zeros(1))


@ids
def test_gymnasium_shows_tasks_in_a_window(env_id):
    env = gym.make(env_id, render_mode="human")  # shows nothing, and needs no pygame, before the first reset
    assert isinstance(env, gym.wrappers.HumanRendering)


def test_a_failure_in_the_last_step_is_no_time_out():
    env = make_batched("RllabCartPole-v0", 2, seed=0, max_episode_steps=3)
    env.reset()
    for _ in range(2):
        env.step(np.zeros((2, 1)))
    env._states[0, 0] = 3.0  # off the track
    _, _, dones, infos = env.step(np.zeros((2, 1)))
    assert dones.all()
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]


def test_a_shorter_limit_ends_episodes_that_are_past_it():
    env = make_batched("RllabDoublePendulum-v0", 2, seed=0)
    env.reset()
    for _ in range(5):
        env.step(np.zeros((2, 1)))
    env.set_attr("max_episode_steps", 3)
    assert env.step(np.zeros((2, 1)))[2].all()


def test_a_reset_begins_returns_and_lengths_anew():
    env = make_batched("TwoGoals-v0", 2, seed=0)
    env.reset()
    for _ in range(5):
        env.step(np.ones((2, 2)))
    env.reset()
    step = env.step_batch(np.ones((2, 2)))
    assert step.lengths.tolist() == [1, 1]
    np.testing.assert_array_equal(step.returns, step.rewards)


def test_every_column_has_infos_of_its_own_and_every_action_one_step():
    env = make_batched("RllabDoublePendulum-v0", 2, seed=0)
    env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    *_, infos = env.step(np.zeros((2, 1)))
    assert infos[0] is not infos[1]
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()


def test_methods_of_the_task_get_their_arguments():
    env = make_batched("RllabDoublePendulum-v0", 2, seed=0)
    np.testing.assert_array_equal(env.env_method("force", np.array([[0.5]])), [[25.0]] * 2)
