"""Agents that are updated jointly: one VecEnv, one matrix of parameters, one direction for each row of it."""

from sb3_wng.population.directions import PopulationDirection, behavior_repulsion, population_direction
from sb3_wng.population.policies import PopulationPolicy
from sb3_wng.population.population import Population
from sb3_wng.population.schedules import AnnealedTemperature, CyclicalTemperature
from sb3_wng.population.svpg import SVPG

__all__ = [
    "SVPG",
    "AnnealedTemperature",
    "CyclicalTemperature",
    "Population",
    "PopulationDirection",
    "PopulationPolicy",
    "behavior_repulsion",
    "population_direction",
]
