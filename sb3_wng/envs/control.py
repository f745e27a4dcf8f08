"""rllab's four classic tasks with continuous actions, on which SVPG's experiments (arXiv 1704.02399) run.

Bodies, limits, rewards and start states are those of rllab's models (arXiv 1604.06778). Departures:

- the exact equations of motion (:mod:`sb3_wng.envs.mechanics`) but for the double pendulum, where rllab lets Box2D hold the
  bodies together: no slack in the joints, which take no energy, no friction (rllab's is at most 5e-4), and the mountain car is
  a point on its track. The double pendulum moves as in Box2D;
- actions are in [-1, 1] and scaled to the force, as by the ``normalize`` wrapper of rllab's experiments; larger ones are
  clipped;
- the cart-poles observe the angle's cosine and sine by default; ``observation="raw"`` gives rllab's unwrapped angle;
- the double pendulum's reward uses the tip's true position, where rllab's mirrors the lower link's share of x.

Every class is a :class:`sb3_wng.envs.batched.BatchedTask`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_wng.envs import mechanics
from sb3_wng.envs.mechanics import CAR_SIZE, CART_SIZE, LINK, MAX_ROTATION, MAX_TRANSLATION, POLE, Array
from sb3_wng.envs.rendering import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, Canvas

AngleObservation = Literal["cos_sin", "raw"]
Bools = NDArray[np.bool_]


def stack_features(*features: Array) -> NDArray[np.float32]:
    """Features, each (n,), as observations (n, d) with contiguous rows."""
    observations = np.empty((len(features[0]), len(features)), np.float32)
    for index, feature in enumerate(features):
        observations[:, index] = feature
    return observations


def symmetric_box(*bounds: float) -> spaces.Box:
    high = np.array(bounds, np.float32)
    return spaces.Box(-high, high)


@dataclass(frozen=True, kw_only=True)
class ControlTask:
    """One bounded force, a fixed time step, and a time limit that truncates.

    :param max_episode_steps: an episode's length if nothing ends it before
    """

    max_episode_steps: int = 500
    dt: ClassVar[float] = 0.05
    max_force: ClassVar[float]

    def __post_init__(self) -> None:
        if self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {self.max_episode_steps}")

    @property
    def action_space(self) -> spaces.Box:
        return symmetric_box(1.0)

    @property
    def render_fps(self) -> int:
        return round(1 / self.dt)

    def force(self, actions: Array) -> Array:
        """Force in N, or torque in N m, of actions (n, 1); shape (n,)."""
        return self.max_force * mechanics.limit(actions[:, 0].astype(np.float64), 1.0)


@dataclass(frozen=True, kw_only=True)
class AngleTask(ControlTask):
    """A task whose state has angles.

    :param observation: "cos_sin" observes an angle as its cosine and sine; "raw" as it is, not wrapped to one turn, which
        is much harder to learn from where angles go around
    :param max_episode_steps: an episode's length if nothing ends it before
    """

    observation: AngleObservation = "cos_sin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.observation not in get_args(AngleObservation):
            raise ValueError(f'observation must be "cos_sin" or "raw" (unwrapped angles), got "{self.observation}"')


@dataclass(frozen=True, kw_only=True)
class CartPoleTask(AngleTask):
    """A pole hinged on a cart, and a horizontal force on the cart.

    State: position (m), velocity, angle (zero upright, positive to the right, not wrapped), rate. Observation (5):
    position, velocity, cosine and sine of the angle, rate; or the state itself.
    """

    max_force: ClassVar[float] = 10.0
    max_position: ClassVar[float]
    start_center: ClassVar[tuple[float, float, float, float]]
    start_spread: ClassVar[tuple[float, float, float, float]]

    @property
    def observation_space(self) -> spaces.Box:
        position = self.max_position + MAX_TRANSLATION  # one step over the limit
        angle = (1.0, 1.0) if self.observation == "cos_sin" else (np.inf,)
        return symmetric_box(position, MAX_TRANSLATION / self.dt, *angle, MAX_ROTATION / self.dt)

    def reset(self, rng: np.random.Generator, n: int) -> Array:
        return np.array(self.start_center) + np.array(self.start_spread) * rng.uniform(-1, 1, (n, 4))

    def observe(self, states: Array) -> NDArray[np.float32]:
        position, velocity, angle, rate = states.T.astype(np.float32)  # before the sine, which is six times as fast in it
        angles = (np.cos(angle), np.sin(angle)) if self.observation == "cos_sin" else (angle,)
        return stack_features(position, velocity, *angles, rate)

    def render(self, state: Array) -> NDArray[np.uint8]:
        position, _, angle, _ = map(float, state)
        width, height = CART_SIZE
        canvas = Canvas((-self.max_position - 0.8, self.max_position + 0.8), (-1.5, 1.5))
        canvas.box((0, -height), (100, 0.02), GREY)
        for end in (-self.max_position, self.max_position):
            canvas.box((end, -height), (0.03, 0.25), GREY)
        canvas.box((position, -height / 2), (width, height), DARK)
        tip = (position + POLE.length * np.sin(angle), POLE.length * np.cos(angle))
        canvas.bar((position, 0), tip, POLE.width / 2, ORANGE)
        canvas.disc((position, 0), 0.03, LIGHT)
        return canvas.image


class CartPole(CartPoleTask):
    """Keep the pole upright: ``RllabCartPole-v0``.

    Reward 10 - (1 - cos(angle)) - 1e-5 force^2. Ends, with reward 0, at |position| > 2.4 m or |angle| > .2 rad. Starts
    within 5 % of (2.4, 4, .2, 4).
    """

    max_position: ClassVar[float] = 2.4
    max_angle: ClassVar[float] = 0.2
    start_center = (0.0, 0.0, 0.0, 0.0)
    start_spread = (0.12, 0.2, 0.01, 0.2)

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Bools]:
        force = self.force(actions)
        states = mechanics.step_cart_pole(states, force, self.dt)
        position, _, angle, _ = states.T
        failed = (np.abs(position) > self.max_position) | (np.abs(angle) > self.max_angle)
        rewards = 9 + np.cos(angle) - 1e-5 * force * force
        rewards[failed] = 0
        return states, rewards, failed


class CartPoleSwingUp(CartPoleTask):
    """Swing the hanging pole up and hold it: ``RllabCartPoleSwingUp-v0``.

    Reward cos(angle). Ends, with reward -100, at |position| > 3 m. Starts at position +-1, velocity +-2, angle pi +- 1,
    rate +-3.
    """

    max_position: ClassVar[float] = 3.0
    start_center = (0.0, 0.0, np.pi, 0.0)
    start_spread = (1.0, 2.0, 1.0, 3.0)

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Bools]:
        states = mechanics.step_cart_pole(states, self.force(actions), self.dt)
        failed = np.abs(states[:, 0]) > self.max_position
        rewards = np.cos(states[:, 2])
        rewards[failed] = -100
        return states, rewards, failed


@dataclass(frozen=True, kw_only=True)
class DoublePendulum(AngleTask):
    """Two links with a motor in the joint between them; raise the tip to (0, 2): ``RllabDoublePendulum-v0``.

    State: angle and rate of the upper, then of the lower link (absolute angles, zero hanging, counter-clockwise).
    Observation (6): sine and cosine of the angle, and rate, of each link; or the state itself. Reward: minus the tip's
    distance from (0, 2) in m. Never ends early. Starts hanging, angles .1 N(0, 1) and rates .01 N(0, 1).
    """

    dt: ClassVar[float] = 0.02
    substeps: ClassVar[int] = 2
    max_force: ClassVar[float] = 50.0

    @property
    def observation_space(self) -> spaces.Box:
        rate = MAX_ROTATION * self.substeps / self.dt
        return symmetric_box(*(1.0, 1.0, rate) * 2) if self.observation == "cos_sin" else symmetric_box(*(np.inf, rate) * 2)

    def reset(self, rng: np.random.Generator, n: int) -> Array:
        return np.array([0.1, 0.01, 0.1, 0.01]) * rng.standard_normal((n, 4))

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Bools]:
        torque = self.force(actions)
        for _ in range(self.substeps):
            states = mechanics.step_double_pendulum(states, torque, self.dt / self.substeps)
        upper, _, lower, _ = states.T
        right = np.sin(upper) + np.sin(lower)
        below = 2 + np.cos(upper) + np.cos(lower)
        return states, -LINK.length * np.sqrt(right * right + below * below), np.zeros(len(states), np.bool_)

    def observe(self, states: Array) -> NDArray[np.float32]:
        upper, upper_rate, lower, lower_rate = states.T.astype(np.float32)
        if self.observation == "raw":
            return stack_features(upper, upper_rate, lower, lower_rate)
        return stack_features(np.sin(upper), np.cos(upper), upper_rate, np.sin(lower), np.cos(lower), lower_rate)

    def render(self, state: Array) -> NDArray[np.uint8]:
        upper, _, lower, _ = map(float, state)
        joint = (LINK.length * np.sin(upper), -LINK.length * np.cos(upper))
        tip = (joint[0] + LINK.length * np.sin(lower), joint[1] - LINK.length * np.cos(lower))
        canvas = Canvas((-2.4, 2.4), (-2.3, 2.3))
        canvas.box((0, 0), (100, 0.02), LIGHT)
        canvas.disc((0, 2 * LINK.length), 0.12, GREEN)
        canvas.bar((0, 0), joint, LINK.width / 2, BLUE)
        canvas.bar(joint, tip, LINK.width / 2, ORANGE)
        for pivot in ((0.0, 0.0), joint):
            canvas.disc(pivot, 0.03, LIGHT)
        return canvas.image


@dataclass(frozen=True, kw_only=True)
class MountainCar(ControlTask):
    """A car too weak to climb out of its valley in one go: ``RllabMountainCar-v0``.

    State and observation (2): horizontal position (m) and velocity (m/s). Reward: the car's height (m, zero in the valley)
    minus 1. Ends at position >= .6, the goal, and at the valley's other rim, |position| >= 2. Starts in the valley with a
    velocity of +-1.
    """

    max_force: ClassVar[float] = 1.0
    goal: ClassVar[float] = 0.6
    max_position: ClassVar[float] = 2.0

    @property
    def observation_space(self) -> spaces.Box:
        return symmetric_box(self.max_position + MAX_TRANSLATION, MAX_TRANSLATION / self.dt)

    def reset(self, rng: np.random.Generator, n: int) -> Array:
        velocity = rng.uniform(-1, 1, n)
        return mechanics.columns(np.zeros(n), velocity)

    def step(self, states: Array, actions: Array) -> tuple[Array, Array, Bools]:
        states = mechanics.step_mountain_car(states, self.force(actions), self.dt)
        position = states[:, 0]
        return states, mechanics.track_height(position) - 1, (position >= self.goal) | (position <= -self.max_position)

    def observe(self, states: Array) -> NDArray[np.float32]:
        return stack_features(*states.T)

    def render(self, state: Array) -> NDArray[np.uint8]:
        position = float(state[0])
        width, height = CAR_SIZE
        canvas = Canvas((-2.1, 2.1), (-0.3, 2.5))
        slope = mechanics.track_slope(canvas.x)
        canvas.fill((canvas.y - mechanics.track_height(canvas.x)) / np.sqrt(1 + slope**2), LIGHT)
        goal = float(mechanics.track_height(np.array(self.goal)))
        canvas.bar((self.goal, goal), (self.goal, goal + 0.45), 0.012, DARK)
        canvas.box((self.goal + 0.12, goal + 0.38), (0.24, 0.14), GREEN)
        tilt = np.arctan(float(mechanics.track_slope(np.array(position))))
        ground = float(mechanics.track_height(np.array(position)))
        center = (position - height * np.sin(tilt), ground + height * np.cos(tilt))
        canvas.box(center, (width, height), ORANGE, angle=tilt)
        for side in (-0.3, 0.3):
            along, up = side * width, height / 2
            wheel = (position + along * np.cos(tilt) - up * np.sin(tilt), ground + along * np.sin(tilt) + up * np.cos(tilt))
            canvas.disc(wheel, height / 2, DARK)
        return canvas.image
