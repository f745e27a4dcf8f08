"""Robots that stand before a pocket-shaped wall, with their goal behind it: greed is a local optimum."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

try:
    from gymnasium.envs.mujoco import MujocoEnv
except (ImportError, DependencyNotInstalled) as error:
    raise DependencyNotInstalled('The wall tasks need MuJoCo; install it with: pip install "sb3-wng[envs]"') from error

ASSETS = Path(__file__).parent / "assets"
RESET_NOISE = 0.1


class WallEnv(MujocoEnv, EzPickle):
    """A robot, a U-shaped wall that is open towards it, and a goal behind the wall.

    The reward of a step is minus the distance in metres between the robot and the goal, in the plane and after the step;
    there is no other term. Episodes never terminate, they are only truncated. Actions outside [-1, 1] are clipped.
    An episode starts in the model's initial state, plus noise from U(-0.1, 0.1) on every coordinate of the position and
    from 0.1 N(0, 1) on every velocity. ``info`` has the robot's ``x_position`` and ``y_position``.

    A task is a MuJoCo model whose first two coordinates are the robot's place in the plane, and which has a site ``goal``.

    :param kwargs: Passed to :class:`gymnasium.envs.mujoco.MujocoEnv`: ``render_mode``, ``width``, ``height``,
        ``default_camera_config`` and so on.
    """

    # Gymnasium does not declare it a class variable
    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012

    model_file: ClassVar[str]
    steps_per_action: ClassVar[int]
    camera: ClassVar[dict[str, Any]]

    def __init__(self, **kwargs: Any):
        EzPickle.__init__(self, **kwargs)
        super().__init__(
            str(ASSETS / self.model_file),
            self.steps_per_action,
            observation_space=None,  # its size is the model's
            **{"default_camera_config": self.camera, **kwargs},
        )
        self.observation_space = Box(-np.inf, np.inf, self._observation().shape, np.float64)
        self._goal = self.model.site("goal").pos[:2].copy()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], np.float64, bool, bool, dict[str, Any]]:
        self.do_simulation(action, self.frame_skip)
        if self.render_mode == "human":
            self.render()
        # qpos, as MuJoCo's Cartesian positions still belong to the state before the last integration step
        reward = -np.hypot(*(self._goal - self.data.qpos[:2]))
        return self._observation(), reward, False, False, self._get_reset_info()

    def reset_model(self) -> NDArray[np.float64]:
        qpos = self.init_qpos + self.np_random.uniform(-RESET_NOISE, RESET_NOISE, self.model.nq)
        qvel = self.init_qvel + RESET_NOISE * self.np_random.standard_normal(self.model.nv)
        self.set_state(qpos, qvel)
        return self._observation()

    def _observation(self) -> NDArray[np.float64]:
        return self.state_vector()

    def _get_reset_info(self) -> dict[str, Any]:
        return {"x_position": self.data.qpos[0], "y_position": self.data.qpos[1]}


class PointWallEnv(WallEnv):
    """A frictionless ball that is pushed in the plane, 50 steps of 0.04 s: ``PointWall-v0``.

    Observation (6): x, y, heading, and their velocities. Action (2): force along x and y, up to 35.5 m/s². The goal is at
    (25, 0). The arrow on the ball makes it turn; its heading does not steer it.

    A task of the evolution strategies of Pacchiano et al. (2019) and Moskovitz et al. (2021).
    """

    metadata = {**WallEnv.metadata, "render_fps": 25}  # noqa: RUF012
    model_file = "point_wall.xml"
    steps_per_action = 2
    camera: ClassVar[dict[str, Any]] = {
        "lookat": np.array([12.5, 0.0, 0.0]),
        "distance": 24.0,
        "elevation": -50.0,
        "azimuth": 90.0,
    }


class AntWallEnv(WallEnv):
    """The standard four-legged ant with motors of a third of the strength, 400 steps of 0.05 s: ``AntWall-v0``.

    Observation (113): position (15: the torso's x, y, z and quaternion, 8 joint angles), velocity (14), and 84 zeros where
    old versions of MuJoCo left the contact forces unset, so that policies have the published sizes. Action (8): torques of
    up to 50 Nm, hip before ankle, of legs 4, 1, 2, 3. The goal is at (15, 0). There is no reward for being alive and no
    control cost, and an ant that lies on its back is not reset.

    A task of the evolution strategies of Pacchiano et al. (2019) and Moskovitz et al. (2021).
    """

    metadata = {**WallEnv.metadata, "render_fps": 20}  # noqa: RUF012
    model_file = "ant_wall.xml"
    steps_per_action = 5
    camera: ClassVar[dict[str, Any]] = {
        "lookat": np.array([7.3, 0.0, 0.0]),
        "distance": 14.0,
        "elevation": -50.0,
        "azimuth": 90.0,
    }

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self.state_vector(), np.zeros(self.data.cfrc_ext.size)])
