"""The wall tasks: returns of known controllers, agreement with the published models, and what workers ask of them."""

import os
import subprocess
import sys
import warnings
from importlib import import_module

import cloudpickle
import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import sb3_wng

TASKS = {"PointWall-v0": (25.0, 6, 2, 50), "AntWall-v0": (15.0, 113, 8, 400)}  # goal's x, sizes, steps
ACCELERATION = 2000 / (100 * (4 / 3 * np.pi * 0.5**3 + 0.04))  # gear / (density x volume of ball and arrow)


@pytest.fixture(params=TASKS)
def env(request):
    with gym.make(request.param) as env:
        yield env


@pytest.fixture
def point():
    with gym.make("PointWall-v0") as env:
        yield env


@pytest.fixture
def ant():
    with gym.make("AntWall-v0") as env:
        yield env


def episode(env, controller, seed=0):
    """Observations, the initial one included, and rewards of one episode."""
    observation, _ = env.reset(seed=seed)
    observations, rewards, truncated = [observation], [], False
    while not truncated:
        observation, reward, terminated, truncated, _ = env.step(controller(observation))
        assert not terminated
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


def returns(env, controller, n_episodes):
    return np.array([episode(env, controller, seed)[1].sum() for seed in range(n_episodes)])


def random_actions(env, seed=0):
    rng = np.random.default_rng(seed)
    return lambda _: rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)


def no_action(env):
    return lambda _: np.zeros(env.action_space.shape, np.float32)


def push_to_goal(observation):
    return np.clip([25 - observation[0], -observation[1]], -1, 1)


def push_around_the_wall(observation):
    """Full throttle to a point beside the wall, then a damped spring to the goal."""
    position, velocity = observation[:2], observation[3:5]
    if position[0] < 11.25:
        offset = [12.5, 3.5] - position
        return offset / np.abs(offset).max()
    return np.clip(0.7 * ([25, 0] - position) - 0.3 * velocity, -1, 1)


def drag(env, way, speed):
    """A controller that drags the ant's torso along points of the plane by an outer force; its motors are idle."""
    way = [np.array(point, float) for point in way]
    torso = env.unwrapped.data.body("torso")

    def controller(observation):
        position, velocity = observation[:2], observation[15:17]
        if len(way) > 1 and np.linalg.norm(way[0] - position) < 0.3:
            way.pop(0)
        offset = way[0] - position
        wanted = speed * offset / max(np.linalg.norm(offset), 0.5)
        torso.xfrc_applied[:2] = 20 * (wanted - velocity) + 15 * wanted
        return np.zeros(8, np.float32)

    return controller


def test_the_tasks_are_registered_without_their_simulator_and_say_how_to_install_it():
    script = """
import sys, gymnasium, sb3_wng
assert "mujoco" not in sys.modules
sys.modules["mujoco"] = None
for task in ("PointWall-v0", "AntWall-v0"):
    try:
        gymnasium.make(task)
    except gymnasium.error.DependencyNotInstalled as error:
        assert 'pip install "sb3-wng[envs]"' in str(error)
    else:
        raise AssertionError("made without MuJoCo")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_classes_are_names_of_the_package(env):
    assert type(env.unwrapped) is getattr(sb3_wng.envs, type(env.unwrapped).__name__)
    with pytest.raises(AttributeError, match="no attribute 'Wall'"):
        _ = sb3_wng.envs.Wall


@pytest.mark.parametrize("check", [lambda env: check_env(env, skip_render_check=True), sb3_check_env])
def test_environment_checkers_only_mention_the_unbounded_observations(env, check):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env.unwrapped)
    assert [str(w.message) for w in caught if "observation space m" not in str(w.message)] == []


def test_spaces_and_time_limits_are_the_published_ones(env):
    _, n_observation, n_action, n_steps = TASKS[env.spec.id]
    assert env.observation_space.shape == (n_observation,)
    assert env.action_space == gym.spaces.Box(-1, 1, (n_action,), np.float32)
    observations, _ = episode(env, random_actions(env))
    assert len(observations) == n_steps + 1
    assert env.metadata["render_fps"] == round(1 / env.unwrapped.dt)


def test_reward_is_minus_the_distance_to_the_goal_after_the_step(env):
    goal = np.array([TASKS[env.spec.id][0], 0.0])
    observations, rewards = episode(env, random_actions(env))
    assert_allclose(rewards, -np.linalg.norm(observations[1:, :2] - goal, axis=1))


def test_info_has_the_position(env):
    observation, info = env.reset(seed=0)
    assert_array_equal([info["x_position"], info["y_position"]], observation[:2])
    observation, _, _, _, info = env.step(env.action_space.sample())
    assert_array_equal([info["x_position"], info["y_position"]], observation[:2])


def test_actions_are_clipped(env):
    seen = []
    for scale in (1, 7):
        env.reset(seed=0)
        seen.append(env.step(np.full(env.action_space.shape, scale, np.float32))[0])
    assert_array_equal(*seen)


def test_reset_noise_is_uniform_in_position_and_normal_in_velocity(env):
    model = env.unwrapped.model
    start = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    position, velocity = start[:, : model.nq] - model.qpos0, start[:, model.nq : model.nq + model.nv]
    assert 0.095 < np.abs(position).max() <= 0.1
    assert_allclose(position.std(), 0.1 / np.sqrt(3), rtol=0.05)
    assert_allclose(velocity.std(), 0.1, rtol=0.05)
    assert_allclose(np.abs(velocity).mean() / velocity.std(), np.sqrt(2 / np.pi), rtol=0.05)


def copies(env):
    yield "same", env
    yield "pickle", cloudpickle.loads(cloudpickle.dumps(env))
    yield "spec", gym.make(env.spec)
    yield "JSON", gym.make(EnvSpec.from_json(env.spec.to_json()))


def test_a_seed_fixes_the_episode_also_in_copies(env):
    expected, expected_rewards = episode(env, random_actions(env), seed=3)
    for name, copy in copies(env):
        observations, rewards = episode(copy, random_actions(env), seed=3)
        assert_array_equal(observations, expected, err_msg=name)
        assert_array_equal(rewards, expected_rewards, err_msg=name)
        assert not np.array_equal(copy.reset(seed=4)[0], expected[0])


def test_a_pickled_environment_keeps_its_arguments():
    with gym.make("PointWall-v0", width=64, height=48) as env:
        copy = cloudpickle.loads(cloudpickle.dumps(env)).unwrapped
    assert (copy.width, copy.height) == (64, 48)


def test_nothing_brakes_the_point(point):
    """On a floor that it touches, friction stops the ball at full throttle at x = 4.3."""
    unwrapped = point.unwrapped
    point.reset(seed=0)
    unwrapped.set_state(np.zeros(3), np.zeros(3))
    for _ in range(18):
        observation, *_ = point.step(np.array([1, 0], np.float32))
        assert unwrapped.data.ncon == 0
    time = 18 * unwrapped.dt
    assert_allclose(observation[[0, 3]], [ACCELERATION * time**2 / 2, ACCELERATION * time])


def test_the_pocket_stops_the_point_at_its_back_and_sides(point):
    """The ball has radius 0.5; the walls' inner faces are at x = 13.7 and y = 1.7. The arrow points out of the pocket."""
    for action, index, expected in [([1, 0], 0, 13.2), ([0, 1], 1, 1.2), ([0, -1], 1, -1.2)]:
        point.reset(seed=0)
        point.unwrapped.set_state(np.array([12.8, 0, np.pi]), np.zeros(3))
        path = [point.step(np.array(action) * 0.3)[0][index] for _ in range(20)]
        assert_allclose(max(path, key=abs), expected, atol=0.1)


def test_returns_of_the_point_are_the_published_ones(point):
    still, stuck, around = (returns(point, c, 20) for c in (no_action(point), push_to_goal, push_around_the_wall))
    assert_allclose(still.mean(), -50 * 25, atol=5)
    assert_allclose(stuck.mean(), -778, atol=5)  # published: -775 to -780
    assert (around > -590).all()  # learnt: -540 to -590
    assert (around < -522).all()  # best open loop


def test_the_ant_is_gymnasiums_with_weaker_motors(ant):
    model = ant.unwrapped.model
    standard = mujoco.MjModel.from_xml_path(expand_model_path("ant.xml"))
    for name in ["body_mass", "body_inertia", "body_pos", "jnt_type", "jnt_axis", "jnt_pos", "jnt_range", "jnt_limited"]:
        assert_array_equal(getattr(model, name), getattr(standard, name), err_msg=name)
    for name in ["dof_armature", "dof_damping", "qpos0", "actuator_trnid", "actuator_ctrlrange"]:
        assert_array_equal(getattr(model, name), getattr(standard, name), err_msg=name)
    robot = slice(model.geom("torso").id, model.geom("shin_4").id + 1)
    standard_robot = slice(1, standard.ngeom)
    for name in ["geom_type", "geom_size", "geom_pos", "geom_quat", "geom_friction", "geom_margin", "geom_condim"]:
        assert_array_equal(getattr(model, name)[robot], getattr(standard, name)[standard_robot], err_msg=name)
    assert_array_equal(model.actuator_gear[:, 0], 50)
    assert (model.opt.timestep, model.opt.integrator) == (standard.opt.timestep, standard.opt.integrator)


def test_the_ant_stands_on_its_floor_and_its_contact_forces_are_zero(ant):
    observations, rewards = episode(ant, no_action(ant))
    assert ant.unwrapped.data.ncon >= 4
    assert np.abs(ant.unwrapped.data.cfrc_ext).max() > 0
    assert_array_equal(observations[:, 29:], 0)
    assert (observations[100:, 2] > 0.3).all()
    assert_allclose(rewards.sum(), -400 * 15, rtol=0.03)


def test_the_pocket_stops_an_ant_that_is_dragged_to_the_goal(ant):
    observations, rewards = episode(ant, drag(ant, [(15, 0)], speed=1))
    assert_allclose(observations[:, 0].max(), 4.7 - 0.25, atol=0.15)  # the back's inner face less the torso's radius
    assert_allclose(rewards.sum(), -4600, rtol=0.06)


def test_an_ant_at_one_metre_per_second_gets_around_the_wall(ant):
    observations, rewards = episode(ant, drag(ant, [(4.5, 3), (5.5, 3), (15, 0)], speed=0.8))
    steps = np.diff(observations[observations[:, 0] < 14, :2], axis=0)
    assert_allclose(np.linalg.norm(steps, axis=1).mean() / ant.unwrapped.dt, 1, atol=0.05)
    assert_allclose(rewards.sum(), -2600, rtol=0.05)


@pytest.fixture
def offscreen(monkeypatch):
    """A working OpenGL backend for pictures; the test is skipped where the machine has none."""
    backend = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform.startswith("linux") else "glfw")
    try:
        import_module(f"mujoco.{backend}").GLContext(8, 8).free()
    except (ImportError, AttributeError, RuntimeError) as error:
        pytest.skip(f"no OpenGL by {backend}: {error}")
    monkeypatch.setenv("MUJOCO_GL", backend)


@pytest.mark.usefixtures("offscreen")
@pytest.mark.parametrize("task", TASKS)
def test_pictures_show_robot_wall_and_goal_and_do_not_prevent_copying(task):
    with gym.make(task, render_mode="rgb_array", width=320, height=160) as env:
        env.reset(seed=0)
        picture = env.render()
        copy = cloudpickle.loads(cloudpickle.dumps(env))
        assert_array_equal(copy.reset(seed=0)[0], env.reset(seed=0)[0])
    assert picture.shape == (160, 320, 3)
    assert picture.dtype == np.uint8
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    robot, goal = (red - blue > 60), (green - red > 60)
    wall = blue < 110
    columns = [np.nonzero(mask)[1].mean() for mask in (robot, wall & ~robot & ~goal, goal)]
    assert columns == sorted(columns)


@pytest.mark.skipif(sys.platform.startswith("linux") and not os.environ.get("DISPLAY"), reason="needs a display; try xvfb-run")
@pytest.mark.parametrize("task", TASKS)
def test_a_window_shows_the_episode(task):
    with gym.make(task, render_mode="human", width=320, height=160) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert env.unwrapped.mujoco_renderer.viewer.window is not None
