"""Tasks of the papers that no package has, registered with Gymnasium when sb3_wng is imported: nothing but environments.

Entry points are strings, so the simulator of a task is only imported when an environment of it is made.
"""

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

from sb3_wng.envs.batched import BatchedTask, BatchedVecEnv, BatchStep, make_batched, make_task, register_tasks

if TYPE_CHECKING:
    from sb3_wng.envs.walls import AntWallEnv, PointWallEnv

__all__ = [
    "AntWallEnv",
    "BatchStep",
    "BatchedTask",
    "BatchedVecEnv",
    "PointWallEnv",
    "make_batched",
    "make_task",
]

register("PointWall-v0", entry_point="sb3_wng.envs.walls:PointWallEnv", max_episode_steps=50)
register("AntWall-v0", entry_point="sb3_wng.envs.walls:AntWallEnv", max_episode_steps=400)
register("LinearQuadratic-v0", entry_point="sb3_wng.envs.linear_quadratic:LinearQuadraticEnv", max_episode_steps=8)
register("UprightPendulum-v0", entry_point="sb3_wng.envs.upright:UprightPendulumEnv", max_episode_steps=200)
register_tasks()


def __getattr__(name: str) -> Any:
    if name in ("AntWallEnv", "PointWallEnv"):
        from sb3_wng.envs import walls

        return getattr(walls, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
