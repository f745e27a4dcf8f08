"""The clocks of the speed measurement."""

import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

from sb3_wng.algorithms.worker_environments import environment_maker
from sb3_wng.benchmarks.evolution_speed import Stopwatch, cpu_seconds, record_episodes, replay


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_cpu_seconds_count_processes_that_this_one_started_while_they_run():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, until = cpu_seconds(), time.monotonic() + 10
        own = time.process_time()
        while cpu_seconds() - before < 0.3 + time.process_time() - own:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        busy.kill()
        busy.wait()


def test_the_stopwatch_leaves_out_the_first_rollout():
    watch = Stopwatch()
    watch.marks = [(100, 10.0, 50.0), (300, 11.0, 51.0), (500, 12.0, 55.0)]
    assert watch.speed() == (200.0, 80.0)


def test_replayed_episodes_are_those_that_were_recorded():
    (seed, actions), *_ = episodes = record_episodes("PointWall-v0", 2)
    assert len(episodes) == 2
    env = gym.make("PointWall-v0")
    env.reset(seed=seed)
    assert len(actions) == 50
    assert np.ptp(actions) > 0
    assert env.step(actions[0])[3] is False
    assert all(speed > 0 for speed in replay(environment_maker("PointWall-v0"), episodes, 1))
