"""Motion of rllab's classic tasks: pure functions of columns of states.

States are (n, k) arrays whose columns are contiguous in memory (Fortran order), so that one coordinate of all columns is
one vector: every function takes any layout and returns this one.

Cart-poles and the mountain car follow their equations of motion by a leapfrog: half a drift, a kick, half a drift. The forces
depend on the rates, too (centrifugal forces), and are evaluated at the rates predicted for the middle of the step. It is of
second order, costs one sine and cosine per step, and keeps the energy of the free cart-pole within .004 J over 500 steps of
.05 s; the energy needed to swing up is 1 J. In rllab Box2D moves them, whose joints take energy: most of it within 5 s. In
trials (guide to environments) SVPG's particles and independent ones learn to swing up as well in either.

The double pendulum moves as in Box2D, since it is another task without what its joints take there: its motor is so strong that
exploration would whirl the links at 100 rad/s, where Box2D's turn at 5 to 15. Each body moves on for a step with its own
velocity, and impulses in the joints then restore what joints allow. In the angles that is a closed form: momenta, at the
angles of now, of the velocities of before, whose directions are those of the angles one step ago. Box2D's iterations agree
but for the slack of its joints.

Velocities are cut at Box2D's limits, which also bounds observations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

GRAVITY = 10.0  # Box2D's default, m/s^2
# Box2D's limits on one step's motion, b2_maxTranslation (m) and b2_maxRotation (rad): they bound every observation
MAX_TRANSLATION = 2.0
MAX_ROTATION = np.pi / 2


class Rod(NamedTuple):
    """A homogeneous rectangle that hangs on the middle of its short side."""

    mass: float
    length: float
    width: float

    @property
    def first_moment(self) -> float:
        """Mass times the distance of the centre of mass from the joint, kg m."""
        return self.mass * self.length / 2

    @property
    def central_inertia(self) -> float:
        """Moment of inertia about the centre of mass, kg m^2."""
        return self.mass * (self.length**2 + self.width**2) / 12

    @property
    def carried_inertia(self) -> float:
        """What the way of the centre of mass around the joint adds to it, kg m^2."""
        return self.mass * self.length**2 / 4

    @property
    def inertia(self) -> float:
        """Moment of inertia about the joint, kg m^2."""
        return self.central_inertia + self.carried_inertia


CART_MASS = 1.0
CART_SIZE = (4 / np.sqrt(12), 3 / np.sqrt(12))
POLE = Rod(mass=0.1, length=1.0, width=0.1)
LINK = Rod(mass=0.5, length=1.0, width=0.1)  # each of the double pendulum's two
CAR_MASS = 0.4
CAR_SIZE = (0.4, 0.2)
VALLEY = np.pi / 2  # wave number of the mountain car's track, 1/m


def columns(*coordinates: Array) -> Array:
    """Coordinates, each (n,), as an (n, k) array with contiguous columns."""
    rows = np.empty((len(coordinates), len(coordinates[0])))
    for row, coordinate in zip(rows, coordinates, strict=True):
        row[:] = coordinate
    return rows.T


def limit(values: Array, bound: float) -> Array:
    """``np.clip`` to [-bound, bound] at half its cost for short vectors."""
    return np.minimum(np.maximum(values, -bound), bound)


def step_cart_pole(states: Array, force: Array, dt: float) -> Array:
    r"""One leapfrog step of a pole that is hinged on a cart.

    .. math::
        M \ddot x + m \cos(a)\,\ddot a &= F + m \sin(a)\,\dot a^2 \\
        m \cos(a)\,\ddot x + J \ddot a &= m g \sin(a)

    with the total mass :math:`M`, the pole's first moment :math:`m` and inertia :math:`J` about the hinge, and the angle
    :math:`a` zero upright and positive when the pole leans towards positive x.

    :param states: position (m), velocity (m/s), angle (rad, unwrapped) and rate (rad/s), shape (n, 4)
    :param force: on the cart in N, shape (n,)
    :param dt: time step in s
    :return: the next states, shape (n, 4)
    """
    position, velocity, angle, rate = states.T
    half = dt / 2
    middle = angle + half * rate
    sin = POLE.first_moment * np.sin(middle)
    cos = POLE.first_moment * np.cos(middle)
    total_mass = CART_MASS + POLE.mass
    inverse = 1 / (total_mass * POLE.inertia - cos * cos)
    weight = (total_mass * GRAVITY) * sin

    middle_rate = rate + half * ((weight - cos * (force + sin * rate * rate)) * inverse)
    push = force + sin * middle_rate * middle_rate
    angular = (weight - cos * push) * inverse
    next_velocity = limit(velocity + dt / total_mass * (push - cos * angular), MAX_TRANSLATION / dt)
    next_rate = limit(rate + dt * angular, MAX_ROTATION / dt)
    return columns(position + half * (velocity + next_velocity), next_velocity, middle + half * next_rate, next_rate)


def cart_pole_energy(states: Array) -> Array:
    """Kinetic and potential energy of cart and pole, J; zero at rest with a horizontal pole. Shape (n,)."""
    _, velocity, angle, rate = states.T
    kinetic = (CART_MASS + POLE.mass) * velocity**2 / 2 + POLE.inertia * rate**2 / 2
    return kinetic + POLE.first_moment * np.cos(angle) * (velocity * rate + GRAVITY)


def step_double_pendulum(states: Array, torque: Array, dt: float) -> Array:
    r"""One step of two equal links that hang from a fixed point, with a motor in the joint between them.

    With a link's mass :math:`\mu`, length :math:`l`, first moment :math:`m` and inertia :math:`J` about its upper end, inertia
    :math:`J_c` about its centre and :math:`K = J - J_c`; absolute angles are zero hanging and positive counter-clockwise, and
    were :math:`a_i'` one step before:

    .. math::
        (J + \mu l^2)\,\dot a_1 + m l \cos(a_1 - a_2)\,\dot a_2 &= (J_c + (K + \mu l^2) \cos(a_1 - a_1'))\,\dot a_1'
            + m l \cos(a_1 - a_2')\,\dot a_2' - (T + (m + \mu l) g \sin(a_1))\,\Delta t \\
        m l \cos(a_1 - a_2)\,\dot a_1 + J \dot a_2 &= m l \cos(a_2 - a_1')\,\dot a_1'
            + (J_c + K \cos(a_2 - a_2'))\,\dot a_2' + (T - m g \sin(a_2))\,\Delta t

    :param states: angle (rad, unwrapped) and rate (rad/s) of the upper link, then of the lower link, shape (n, 4)
    :param torque: on the lower link, and the opposite on the upper one, in N m, shape (n,)
    :param dt: time step in s
    :return: the next states, shape (n, 4)
    """
    upper, upper_rate, lower, lower_rate = states.T
    upper_turned, lower_turned = dt * upper_rate, dt * lower_rate
    between = upper - lower
    carried = LINK.mass * LINK.length
    coupling = LINK.first_moment * LINK.length
    upper_inertia = LINK.inertia + carried * LINK.length
    upper_kept = LINK.central_inertia + (LINK.carried_inertia + carried * LINK.length) * np.cos(upper_turned)
    lower_kept = LINK.central_inertia + LINK.carried_inertia * np.cos(lower_turned)
    upper_pull = (LINK.first_moment + carried) * GRAVITY * np.sin(upper)
    lower_pull = LINK.first_moment * GRAVITY * np.sin(lower)
    first = upper_kept * upper_rate + coupling * np.cos(between + lower_turned) * lower_rate - dt * (torque + upper_pull)
    second = coupling * np.cos(between - upper_turned) * upper_rate + lower_kept * lower_rate + dt * (torque - lower_pull)
    cos = coupling * np.cos(between)
    inverse = 1 / (upper_inertia * LINK.inertia - cos * cos)
    upper_rate = limit((LINK.inertia * first - cos * second) * inverse, MAX_ROTATION / dt)
    lower_rate = limit((upper_inertia * second - cos * first) * inverse, MAX_ROTATION / dt)
    return columns(upper + dt * upper_rate, upper_rate, lower + dt * lower_rate, lower_rate)


def double_pendulum_energy(states: Array) -> Array:
    """Kinetic and potential energy of both links, J; zero at rest with horizontal links. Shape (n,)."""
    upper, upper_rate, lower, lower_rate = states.T
    carried = LINK.mass * LINK.length
    kinetic = (LINK.inertia + carried * LINK.length) * upper_rate**2 / 2 + LINK.inertia * lower_rate**2 / 2
    kinetic += LINK.first_moment * LINK.length * np.cos(upper - lower) * upper_rate * lower_rate
    return kinetic - GRAVITY * ((LINK.first_moment + carried) * np.cos(upper) + LINK.first_moment * np.cos(lower))


def track_height(position: Array) -> Array:
    """Height of the mountain car's track: rllab's sine chain, 0 in the valley and 2 m at the ends x = +-2 m."""
    return 1 - np.cos(VALLEY * position)


def track_slope(position: Array) -> Array:
    """Derivative of :func:`track_height`."""
    return VALLEY * np.sin(VALLEY * position)


def step_mountain_car(states: Array, force: Array, dt: float) -> Array:
    r"""One leapfrog step of a point mass on the track y = h(x), pushed along the track.

    .. math:: (1 + h'^2)\,\ddot x = \frac{F}{\mu} \sqrt{1 + h'^2} - h' (g + h'' \dot x^2)

    :param states: horizontal position (m) and velocity (m/s), shape (n, 2)
    :param force: along the track in N, shape (n,)
    :param dt: time step in s
    :return: the next states, shape (n, 2)
    """
    position, velocity = states.T
    half = dt / 2
    position = position + half * velocity
    slope = track_slope(position)
    curvature = VALLEY**2 * np.cos(VALLEY * position)
    stretch = 1 + slope * slope
    push = force / CAR_MASS * np.sqrt(stretch) - GRAVITY * slope
    middle = velocity + half * (push - slope * curvature * velocity * velocity) / stretch
    velocity = velocity + dt * (push - slope * curvature * middle * middle) / stretch
    velocity = limit(velocity, MAX_TRANSLATION / dt)
    return columns(position + half * velocity, velocity)


def mountain_car_energy(states: Array) -> Array:
    """Kinetic and potential energy of the car, J; zero at rest in the valley. Shape (n,)."""
    position, velocity = states.T
    slope = track_slope(position)
    return CAR_MASS * ((1 + slope**2) * velocity**2 / 2 + GRAVITY * track_height(position))
