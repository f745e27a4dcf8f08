"""Equations of motion against energy, work, equilibria and linear theory; rewards, ends and starts against rllab's."""

import numpy as np
import pytest

from sb3_wng.envs import mechanics
from sb3_wng.envs.control import CartPole, CartPoleSwingUp, DoublePendulum, MountainCar
from sb3_wng.envs.mechanics import CAR_MASS, CART_MASS, GRAVITY, LINK, MAX_ROTATION, MAX_TRANSLATION, POLE, VALLEY

TASKS = [CartPole, CartPoleSwingUp, DoublePendulum, MountainCar]
# step, energy, speed of the force's point of attack in the force's direction, start states' scale
SYSTEMS = {
    "cart-pole": (mechanics.step_cart_pole, mechanics.cart_pole_energy, lambda s: s[:, 1], (1, 2, 3, 3)),
    "double pendulum": (
        mechanics.step_double_pendulum,
        mechanics.double_pendulum_energy,
        lambda s: s[:, 3] - s[:, 1],
        (1.5, 1, 1.5, 1),
    ),
    "mountain car": (
        mechanics.step_mountain_car,
        mechanics.mountain_car_energy,
        lambda s: s[:, 1] * np.sqrt(1 + mechanics.track_slope(s[:, 0]) ** 2),
        (0.5, 0.5),
    ),
}
systems = pytest.mark.parametrize(("step", "energy", "speed", "scale"), SYSTEMS.values(), ids=SYSTEMS)


def random_states(scale, n=16):
    return np.random.default_rng(0).uniform(-1, 1, (n, len(scale))) * scale


def run(step, states, force, dt, duration):
    path = [states]
    for _ in range(round(duration / dt)):
        path.append(step(path[-1], force, dt))
    return np.array(path)  # (steps + 1, n, k)


def act(task, state, action=0.0):
    states, rewards, terminated = task.step(np.array([state], float), np.array([[action]], np.float32))
    return states[0], rewards[0], terminated[0]


def energy_errors(step, energy, scale):
    """Largest error of the energy without force over 5 s with steps of 10 and of 5 ms, relative to the range of the starts."""
    states = random_states(scale)
    energies = [np.array([energy(at) for at in run(step, states, np.zeros(16), dt, 5.0)]) for dt in (0.01, 0.005)]
    return [np.abs(values - values[0]).max() / np.ptp(values[0]) for values in energies]


@pytest.mark.parametrize("name", ["cart-pole", "mountain car"])
def test_energy_stays_without_force_and_its_error_is_of_second_order(name):
    step, energy, _, scale = SYSTEMS[name]
    coarse, fine = energy_errors(step, energy, scale)
    assert coarse < 5e-3
    assert 3 < coarse / fine < 5


def test_what_the_joints_of_the_double_pendulum_take_is_of_first_order():
    step, energy, _, scale = SYSTEMS["double pendulum"]
    coarse, fine = energy_errors(step, energy, scale)
    assert 1.6 < coarse / fine < 2.2


def test_energy_of_the_free_cart_pole_stays_within_what_the_module_claims_at_the_tasks_step():
    states = CartPoleSwingUp().reset(np.random.default_rng(0), 64)
    path = run(mechanics.step_cart_pole, states, np.zeros(64), 0.05, 25)
    energies = np.array([mechanics.cart_pole_energy(at) for at in path])
    assert np.abs(energies - energies[0]).max() < 0.005


def test_the_double_pendulum_moves_as_in_box2d():
    # Box2D 2.3 on rllab's model: the states after every eighth step
    box2d = [
        [0.3463, -0.8468, 0.0312, 1.3454],
        [0.1340, -2.5224, 0.4350, 4.5812],
        [-0.0255, -2.9644, 0.6989, 5.4667],
        [-0.1442, -2.4609, 0.8489, 4.2676],
        [-0.2316, -1.7525, 0.8978, 2.3710],
    ]
    states, path = np.array([[0.5, 0, -0.3, 0]]), []
    for k in range(40):
        states = mechanics.step_double_pendulum(states, np.array([20 * np.sin(0.7 * k + 0.1)]), 0.01)
        path.append(states[0])
    np.testing.assert_allclose(path[7::8], box2d, atol=0.06)  # Box2D's joints have some slack


def test_joints_of_the_double_pendulum_take_energy_as_in_box2d():
    states = np.array([[1.5, 0, 1.5, 0]])  # at rest, nearly horizontal
    path = run(mechanics.step_double_pendulum, states, np.zeros(1), 0.01, 5.0)
    left = [mechanics.double_pendulum_energy(at).item() for at in path[100::100]]
    np.testing.assert_allclose(left, [-1.303, -2.426, -2.788, -3.315, -3.604], atol=0.15)  # Box2D's, after each second


def test_exploration_does_not_whirl_the_double_pendulum():
    task, random = DoublePendulum(), np.random.default_rng(0)
    states, rates = task.reset(random, 16), []
    for _ in range(500):
        states, _, _ = task.step(states, random.standard_normal((16, 1)))
        rates.append(np.abs(states[:, [1, 3]]).mean(0))
    np.testing.assert_allclose(np.mean(rates, 0), [5.5, 14.7], rtol=0.2)  # Box2D's


@systems
def test_the_gain_of_energy_is_the_work_of_the_force(step, energy, speed, scale):
    is_of_first_order = step is mechanics.step_double_pendulum
    states, force, dt = random_states(scale), np.linspace(-0.9, 0.9, 16), 1e-4 if is_of_first_order else 1e-3
    path = run(step, states, force, dt, 1.0)
    speeds = np.array([speed(at) for at in path])
    work = force * dt * (speeds[1:] + speeds[:-1]).sum(0) / 2
    np.testing.assert_allclose(energy(path[-1]) - energy(path[0]), work, atol=2e-2 if is_of_first_order else 1e-4)


def test_momentum_of_cart_and_pole_grows_by_the_force():
    states, force = random_states((1, 2, 3, 3)), np.linspace(-5, 5, 16)
    path = run(mechanics.step_cart_pole, states, force, 1e-3, 1.0)
    momenta = [(CART_MASS + POLE.mass) * s[:, 1] + POLE.first_moment * np.cos(s[:, 2]) * s[:, 3] for s in (path[0], path[-1])]
    np.testing.assert_allclose(momenta[1] - momenta[0], force * 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (mechanics.step_cart_pole, (0.5, 0, 0, 0)),
        (mechanics.step_cart_pole, (0.5, 0, np.pi, 0)),
        (mechanics.step_double_pendulum, (0, 0, 0, 0)),
        (mechanics.step_double_pendulum, (np.pi, 0, 0, 0)),
        (mechanics.step_double_pendulum, (np.pi, 0, np.pi, 0)),
        (mechanics.step_mountain_car, (0, 0)),
        (mechanics.step_mountain_car, (2.0, 0)),
    ],
)
def test_equilibria_stay(step, state):
    np.testing.assert_allclose(step(np.array([state], float), np.zeros(1), 0.02), [state], atol=1e-13)


def frequencies(path, dt):
    """Angular frequencies from the times of upward zero crossings of a coordinate's path (steps,)."""
    at = np.flatnonzero((path[:-1] < 0) & (path[1:] >= 0))
    times = dt * (at - path[at] / (path[at + 1] - path[at]))
    return 2 * np.pi / np.diff(times)


def test_small_swings_have_the_frequencies_of_linear_theory():
    dt, small = 1e-3, 1e-3
    total = CART_MASS + POLE.mass
    cart = run(mechanics.step_cart_pole, np.array([[0, 0, np.pi + small, 0]]), np.zeros(1), dt, 6)[:, 0, 2] - np.pi
    expected = np.sqrt(total * POLE.first_moment * GRAVITY / (total * POLE.inertia - POLE.first_moment**2))
    np.testing.assert_allclose(frequencies(cart, dt), expected, rtol=1e-4)
    car = run(mechanics.step_mountain_car, np.array([[small, 0.0]]), np.zeros(1), dt, 6)[:, 0, 0]
    np.testing.assert_allclose(frequencies(car, dt), np.sqrt(GRAVITY) * VALLEY, rtol=1e-4)


@pytest.mark.parametrize("mode", [0, 1])
def test_both_normal_modes_of_the_double_pendulum_have_the_frequencies_of_linear_theory(mode):
    # M a'' = -K a with M and K of two uniform links, written out independently of the module's constants
    mass, length, inertia = 0.5, 1.0, 0.5 * (1 + 0.01) / 12
    inertias = np.array([[inertia + mass / 4 + mass, mass / 2], [mass / 2, inertia + mass / 4]])
    stiffness = np.diag([10 * (mass * length / 2 + mass * length), 10 * mass * length / 2])
    squares, modes = np.linalg.eig(np.linalg.solve(inertias, stiffness))
    start = 1e-3 * modes[:, mode]
    dt = 1e-3
    path = run(mechanics.step_double_pendulum, np.array([[start[0], 0, start[1], 0]]), np.zeros(1), dt, 8)[:, 0, 0]
    np.testing.assert_allclose(frequencies(path, dt), np.sqrt(squares[mode]), rtol=1e-4)


def test_a_constant_force_tilts_the_equilibrium_of_the_car_as_it_should():
    # Along the track: force = weight * sin(slope angle)
    slope = (1 / (CAR_MASS * GRAVITY)) / np.sqrt(1 - (1 / (CAR_MASS * GRAVITY)) ** 2)
    position = np.arcsin(slope / VALLEY) / VALLEY
    np.testing.assert_allclose(
        mechanics.step_mountain_car(np.array([[position, 0]]), np.ones(1), 0.05), [[position, 0]], atol=1e-13
    )


def test_velocities_are_cut_at_box2ds_limits():
    state = mechanics.step_double_pendulum(np.array([[0, 1e3, 0, -1e3]]), np.zeros(1), 0.01)
    np.testing.assert_allclose(np.abs(state[0, [1, 3]]), MAX_ROTATION / 0.01)
    state = mechanics.step_cart_pole(np.array([[0, 1e3, 0, 1e3]]), np.zeros(1), 0.05)
    np.testing.assert_allclose(state[0, [1, 3]], [MAX_TRANSLATION / 0.05, MAX_ROTATION / 0.05])


def test_cart_pole_pays_ten_less_lean_and_force_and_nothing_when_it_fails():
    task = CartPole()
    state, reward, terminated = act(task, (0, 0, 0.1, 0), action=0.5)
    assert reward == pytest.approx(10 - (1 - np.cos(state[2])) - 1e-5 * 5.0**2)
    assert not terminated
    for position, angle, fails in [(2.39, 0, False), (2.41, 0, True), (-2.41, 0, True), (0, 0.205, True), (0, -0.205, True)]:
        _, reward, terminated = act(task, (position, 0, angle, 0))
        assert terminated == fails
        assert (reward == 0) == fails


def test_swing_up_pays_the_cosine_and_minus_a_hundred_off_the_track():
    task = CartPoleSwingUp()
    state, reward, terminated = act(task, (2.9, 0, 2.0, 1.0))
    assert reward == pytest.approx(np.cos(state[2]))
    assert not terminated
    for position in (-3.01, 3.01):
        assert act(task, (position, 0, 0, 0))[1:] == (-100, True)


def test_double_pendulum_pays_minus_the_tips_distance_and_never_ends():
    task = DoublePendulum()
    assert act(task, (np.pi, 0, np.pi, 0))[1] == pytest.approx(0, abs=1e-12)
    assert act(task, (0, 0, 0, 0))[1] == pytest.approx(-4)
    state, reward, terminated = act(task, (1.0, 0, -2.0, 0))
    tip = np.array([np.sin(state[0]) + np.sin(state[2]), -np.cos(state[0]) - np.cos(state[2])])
    assert reward == pytest.approx(-np.linalg.norm(tip - [0, 2]))
    assert not terminated


def test_mountain_car_pays_its_height_less_one_and_ends_at_the_goal_and_at_the_rim():
    task = MountainCar()
    state, reward, terminated = act(task, (0.3, 0))
    assert reward == pytest.approx(-np.cos(np.pi / 2 * state[0]))
    assert not terminated
    assert act(task, (0.59, 1.0))[2]
    assert act(task, (-2.01, 0))[2]
    assert not act(task, (-1.9, 0))[2]


def test_mountain_car_is_too_weak_to_drive_up_at_once_but_not_to_rock_itself_up():
    task = MountainCar()
    direct = rocking = np.zeros((1, 2))
    reached = {"direct": False, "rocking": False}
    for _ in range(500):
        direct, _, ended = task.step(direct, np.ones((1, 1)))
        reached["direct"] |= bool(ended[0])
        if not reached["rocking"]:
            rocking, _, ended = task.step(rocking, np.sign(rocking[:, 1:] + 1e-9))
            reached["rocking"] |= bool(ended[0])
    assert reached == {"direct": False, "rocking": True}


def test_actions_are_scaled_to_the_force_and_clipped():
    task = DoublePendulum()
    np.testing.assert_array_equal(task.force(np.array([[-3.0], [-0.5], [1.0], [2.0]], np.float32)), [-50, -25, 50, 50])
    assert [task().max_force for task in TASKS] == [10, 10, 50, 1]


@pytest.mark.parametrize(
    ("task", "center", "spread"),
    [
        (CartPole, (0, 0, 0, 0), (0.12, 0.2, 0.01, 0.2)),
        (CartPoleSwingUp, (0, 0, np.pi, 0), (1, 2, 1, 3)),
        (MountainCar, (0, 0), (0, 1)),
    ],
)
def test_starts_fill_rllabs_ranges(task, center, spread):
    starts = task().reset(np.random.default_rng(0), 4000) - center
    assert (np.abs(starts) <= spread).all()
    np.testing.assert_allclose(starts.min(0), np.negative(spread), atol=0.01 * max(spread))
    np.testing.assert_allclose(starts.max(0), spread, atol=0.01 * max(spread))


def test_double_pendulum_starts_with_rllabs_spread():
    starts = DoublePendulum().reset(np.random.default_rng(0), 4000)
    np.testing.assert_allclose(starts.std(0), [0.1, 0.01, 0.1, 0.01], rtol=0.05)


def test_observations_are_cosine_and_sine_or_the_unwrapped_angle():
    state = np.array([[0.5, 1.0, 7.0, 2.0]])
    np.testing.assert_allclose(CartPole().observe(state), [[0.5, 1, np.cos(7), np.sin(7), 2]], rtol=1e-5)
    np.testing.assert_array_equal(CartPole(observation="raw").observe(state), state)
    expected = [[np.sin(0.5), np.cos(0.5), 1, np.sin(7), np.cos(7), 2]]
    np.testing.assert_allclose(DoublePendulum().observe(state), expected, rtol=1e-5)
    np.testing.assert_array_equal(DoublePendulum(observation="raw").observe(state), state)


@pytest.mark.parametrize("task", TASKS)
def test_bad_options_are_refused(task):
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1"):
        task(max_episode_steps=0)
    if task is not MountainCar:
        with pytest.raises(ValueError, match="unwrapped angles"):
            task(observation="angle")


def test_bodies_and_gravity_are_rllabs():
    assert (GRAVITY, CART_MASS, CAR_MASS) == (10, 1, 0.4)
    assert POLE.inertia == pytest.approx(0.1 * (1 + 0.01) / 12 + 0.1 / 4)
    assert LINK.first_moment == 0.25


def test_limits_of_speed_are_box2ds():
    assert (MAX_TRANSLATION, MAX_ROTATION) == (2, np.pi / 2)  # per step
    for speed in (1e3, -1e3):
        assert abs(mechanics.step_mountain_car(np.array([[0.0, speed]]), np.zeros(1), 0.05)[0, 1]) == MAX_TRANSLATION / 0.05


def test_a_step_of_the_double_pendulum_is_two_of_box2d():
    states = random_states((1.5, 1, 1.5, 1))
    forces = np.linspace(-50, 50, len(states))
    expected = run(mechanics.step_double_pendulum, states, forces, 0.01, 0.02)[-1]
    np.testing.assert_allclose(DoublePendulum().step(states, forces[:, None] / 50)[0], expected)


@pytest.mark.parametrize("task", [CartPole(), CartPoleSwingUp(), MountainCar()], ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_fastest_states_are_observations(task, sign):
    fastest = [task.max_position, MAX_TRANSLATION / task.dt, 0, MAX_ROTATION / task.dt]
    state = sign * np.array([fastest[:2] if isinstance(task, MountainCar) else fastest])
    states, *_ = task.step(state, np.array([[float(sign)]]))
    assert task.observation_space.contains(task.observe(states)[0])


@pytest.mark.parametrize("observation", ["raw", "cos_sin"])
def test_the_double_pendulum_turns_faster_between_steps_than_in_one(observation):
    task = DoublePendulum(observation=observation)
    states, *_ = task.step(np.array([[2.39, 144.65, 0.62, 4.76]]), np.array([[1.0]]))
    assert np.abs(states[0, [1, 3]]).max() > MAX_ROTATION / task.dt
    assert task.observation_space.contains(task.observe(states)[0])
