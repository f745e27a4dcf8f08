"""A Ray cluster of two nodes on this machine, one of which is lost."""

import time

import gymnasium as gym
import pytest
from test_workers import assert_same, generation, is_alive, make_policy, pids, run_here

from sb3_wng.algorithms.workers import make_worker_evaluator

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_losing_a_node_changes_nothing_but_the_time(cluster):
    import ray

    env = gym.make("Pendulum-v1")
    policy = make_policy(env)
    evaluator = make_worker_evaluator(policy, env, backend="ray", ray_address=cluster.address)  # n_jobs=-1: both cores
    asked = generation(policy, range(60))
    expected = run_here(asked, policy, env)
    found = dict(evaluator(asked))
    assert_same(found, expected)
    processes = pids(evaluator)
    assert len(processes) == 2

    stream = evaluator(asked)
    found = dict([next(stream)])
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    until = time.monotonic() + 20
    while sum(map(is_alive, processes)) == 2:  # nothing new is dealt meanwhile: the loss is in the middle
        assert time.monotonic() < until
        time.sleep(0.05)
    found.update(stream)
    assert_same(found, expected)

    cluster.add_node(num_cpus=1)  # and one that joins is used again
    found = dict(evaluator(asked))
    assert_same(found, expected)
    evaluator.close()
    assert ray.is_initialized() is False
