"""Natural-gradient and behaviour-geometry reinforcement learning for Stable-Baselines3."""

from importlib import resources

from sb3_wng.algorithms import NPG, PG, WNPG, rank_embeddings
from sb3_wng.behavior import BehaviorCallback

__version__ = resources.files(__name__).joinpath("version.txt").read_text().strip()

__all__ = ["NPG", "PG", "WNPG", "BehaviorCallback", "__version__", "rank_embeddings"]
