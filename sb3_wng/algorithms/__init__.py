"""Algorithms as Stable-Baselines3 users know them: one base class owns the loop, named ones fill its slots."""

from sb3_wng.algorithms.bgpg import BGPG
from sb3_wng.algorithms.bgwnpg import BGWNPG
from sb3_wng.algorithms.npg import NPG
from sb3_wng.algorithms.pg import PG
from sb3_wng.algorithms.policy_gradient import NaturalPolicyGradient
from sb3_wng.algorithms.ranking import EmbeddingRank, format_table, rank_embeddings
from sb3_wng.algorithms.wnpg import WNPG

__all__ = [
    "BGPG",
    "BGWNPG",
    "NPG",
    "PG",
    "WNPG",
    "EmbeddingRank",
    "NaturalPolicyGradient",
    "format_table",
    "rank_embeddings",
]
