"""From experience to points in behaviour space: trajectories, the embeddings that map them, and their recording."""

from sb3_wng.behavior.bonuses import BehaviorBonus, NoveltyBonus, WassersteinBonus
from sb3_wng.behavior.callbacks import BehaviorCallback
from sb3_wng.behavior.embeddings import (
    EMBEDDINGS,
    ActionSequence,
    BehaviorEmbedding,
    FinalState,
    PerTrajectory,
    RewardToGo,
    StateSequence,
    StateVisitation,
    make_embedding,
    spread,
)
from sb3_wng.behavior.references import check_unnormalizable, collect_trajectories, reference_points
from sb3_wng.behavior.spaces import flat_actions, flat_observations
from sb3_wng.behavior.trajectories import Trajectories, Trajectory, Windows, cut_windows

__all__ = [
    "EMBEDDINGS",
    "ActionSequence",
    "BehaviorBonus",
    "BehaviorCallback",
    "BehaviorEmbedding",
    "FinalState",
    "NoveltyBonus",
    "PerTrajectory",
    "RewardToGo",
    "StateSequence",
    "StateVisitation",
    "Trajectories",
    "Trajectory",
    "WassersteinBonus",
    "Windows",
    "check_unnormalizable",
    "collect_trajectories",
    "cut_windows",
    "flat_actions",
    "flat_observations",
    "make_embedding",
    "reference_points",
    "spread",
]
