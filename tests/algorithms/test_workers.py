"""Episodes in other processes: the same outcomes as here, whatever happens to the processes."""

import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, RescaleAction, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_wng import ES
from sb3_wng.algorithms.episodes import run_candidate, run_episode
from sb3_wng.algorithms.evaluation import Candidate, Generation
from sb3_wng.algorithms.evolution_policies import EvolutionPolicy
from sb3_wng.algorithms.worker_environments import environment_maker, foreign_specs, register_specs
from sb3_wng.algorithms.worker_process import check_spaces
from sb3_wng.algorithms.workers import MAX_LOSSES, WorkerLostError, make_worker_evaluator
from sb3_wng.behavior import make_embedding

TIMEOUT = 3.0
RAISES, NOT_FINITE, HANGS, KILLS = range(1000, 1004)


class Troubled(gym.Env):
    """Random rewards that follow the action, and trouble with the seeds above."""

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(-2, 2, (2,))

    def __init__(self, marker=None):
        self.marker = marker

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.length = int(self.np_random.integers(2, 20))
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            self._make_trouble()
        reward = math.nan if self.seed == NOT_FINITE and self.steps == 2 else float(action @ self.np_random.normal(size=2))
        return self._observation(), reward, self.steps == self.length, False, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def _make_trouble(self):
        if self.seed == RAISES:
            raise ZeroDivisionError("the wheel came off")
        if self.seed == HANGS:
            sum(iter(int, 1))  # in C, without ever giving other threads a turn
        if self.seed == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)


def make_policy(env=None, **kwargs):
    env = env or Troubled()
    return EvolutionPolicy(env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[8], **kwargs)


def generation(policy, seeds, number=0):
    """A generation in antithetic pairs, one candidate per seed."""
    parameters = np.random.default_rng(5).standard_normal(len(policy.parameters_to_vector()), dtype=np.float32)
    candidates = [Candidate(i // 2, 1 - 2 * (i % 2), seed) for i, seed in enumerate(seeds)]
    return Generation(parameters, policy.frozen, 0.3, (7, number), policy.normalizer.statistics(), candidates)


def run_here(asked, policy, env, embedding=None):
    """What the candidates come to in this process."""
    return {i: run_candidate(policy, env, asked, candidate, embedding) for i, candidate in enumerate(asked.candidates)}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for i, outcome in expected.items():
        np.testing.assert_equal(found[i]._asdict(), outcome._asdict())  # to the last bit


def pids(evaluator):
    """Process ids of the workers, once all have started."""
    for slot in evaluator._slots:
        if slot.future is not None:
            slot.future.result()
    return [slot.worker.submit(os.getpid).result() for slot in evaluator._slots]


def wait_until_gone(processes):
    until = time.monotonic() + 10
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < until, "worker processes are left over"
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module", params=["loky", "ray"])
def two_workers(request):
    """Policy, environment and an evaluator of two processes, on this machine and on Ray."""
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # or it leaves a token in the home directory
    env = Troubled()
    policy = make_policy(normalize_observations=True)
    embedding = make_embedding("reward_to_go")
    evaluator = make_worker_evaluator(policy, env, embedding, n_jobs=2, backend=request.param, episode_timeout=TIMEOUT)
    yield policy, env, embedding, evaluator
    evaluator.close()


def test_outcomes_are_those_of_this_process_to_the_last_bit(two_workers):
    policy, env, embedding, evaluator = two_workers
    for number in range(3):
        asked = generation(policy, range(30 * number, 30 * number + 30), number)
        assert_same(dict(evaluator(asked)), run_here(asked, policy, env, embedding))
    assert evaluator._chunk_size(30) > 1  # the last generation's episodes travelled together


class KilledOnce(Troubled):
    """Kills its process in some episode, unless a file says that it has done so."""

    def step(self, action):
        self.n_steps = getattr(self, "n_steps", 0) + 1
        if self.n_steps == 60 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def test_training_ends_in_the_same_parameters_in_one_process_and_in_two_of_which_one_is_killed(two_workers, tmp_path):
    backend = two_workers[-1]._backend.name
    two_workers[-1].close()  # Ray was started with two cores

    def train(marker, n_jobs):
        settings = {"n_delta": 8, "normalize_observations": True, "policy_kwargs": {"net_arch": [8]}, "seed": 3}
        return ES("MlpPolicy", KilledOnce(marker), n_jobs=n_jobs, backend=backend, **settings).learn(500)

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    undisturbed.touch()
    two, one = train(killed, 2), train(undisturbed, 1)
    assert killed.exists()
    assert two.num_timesteps == one.num_timesteps
    assert two._n_updates > 1
    np.testing.assert_array_equal(two.policy.parameters_to_vector(), one.policy.parameters_to_vector())


@pytest.mark.parametrize("two_workers", ["loky"], indirect=True)
def test_a_worker_that_died_between_generations_is_replaced(two_workers):
    policy, env, embedding, evaluator = two_workers
    asked = generation(policy, range(10))
    dict(evaluator(asked))
    os.kill(pids(evaluator)[0], signal.SIGKILL)
    assert_same(dict(evaluator(asked)), run_here(asked, policy, env, embedding))


def test_an_episode_that_never_ends_is_an_error_of_its_own_and_the_others_finish(two_workers):
    policy, env, embedding, evaluator = two_workers
    asked = generation(policy, [1, 2, 3, HANGS, *range(4, 20)])
    found = dict(evaluator(asked))
    hung = found.pop(3)
    assert f"episode_timeout = {TIMEOUT:g}" in hung.error
    assert math.isnan(hung.episode_return)
    others = generation(policy, [1, 2, 3, 0, *range(4, 20)])
    expected = run_here(others, policy, env, embedding)
    del expected[3]
    assert_same(found, expected)


@pytest.mark.parametrize(("seed", "message"), [(RAISES, "ZeroDivisionError: the wheel came off"), (NOT_FINITE, "nan")])
def test_an_environment_that_fails_is_made_anew_and_its_episode_says_why(two_workers, seed, message):
    policy, env, embedding, evaluator = two_workers
    asked = generation(policy, [1, seed, *range(2, 20)])
    found = dict(evaluator(asked))
    assert message in found[1].error
    assert_same(found, run_here(asked, policy, env, embedding))


def test_giving_up_a_generation_leaves_nothing_of_it_in_the_next(two_workers):
    policy, env, embedding, evaluator = two_workers
    iterator = evaluator(generation(policy, range(50, 90)))
    next(iterator)
    iterator.close()
    asked = generation(policy, range(10), number=1)
    assert_same(dict(evaluator(asked)), run_here(asked, policy, env, embedding))


@pytest.mark.parametrize("two_workers", ["loky"], indirect=True)
def test_an_episode_that_kills_every_worker_is_given_up(two_workers):
    policy, _, _, evaluator = two_workers
    with pytest.raises(WorkerLostError, match=f"died {MAX_LOSSES} times in a row in the episode with seed {KILLS}"):
        dict(evaluator(generation(policy, [*range(6), KILLS])))
    assert evaluator._slots == []


@pytest.fixture
def ctrl_c():
    """Interrupt as a terminal does, also where the tests run in the background, whose processes ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_workers(ctrl_c):
    policy = make_policy()
    evaluator = make_worker_evaluator(policy, Troubled(), n_jobs=1)
    dict(evaluator(generation(policy, [0])))
    processes = pids(evaluator)
    threading.Timer(0.3, ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        dict(evaluator(generation(policy, [HANGS])))
    wait_until_gone(processes)


def test_workers_end_with_their_evaluator():
    policy = make_policy()
    evaluator = make_worker_evaluator(policy, Troubled(), n_jobs=1)
    dict(evaluator(generation(policy, [0])))
    processes = pids(evaluator)
    assert all(map(is_alive, processes))
    del evaluator
    gc.collect()
    wait_until_gone(processes)


ORPHANS = """
import os, signal
import gymnasium as gym
from test_workers import generation, make_policy, pids
from sb3_wng.algorithms.workers import make_worker_evaluator

class FromAScript(gym.Env):
    observation_space, action_space = gym.make("Pendulum-v1").observation_space, gym.make("Pendulum-v1").action_space
    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}

gym.register("FromAScript-v0", "__main__:FromAScript")
policy = make_policy(FromAScript())
evaluator = make_worker_evaluator(policy, "FromAScript-v0", n_jobs=1)
outcomes = dict(evaluator(generation(policy, range(4))))
assert [outcome.error for outcome in outcomes.values()] == [None] * 4, outcomes
print(*pids(evaluator), flush=True)
if {killed}:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_workers_of_a_script_without_main_guard_end_with_it_even_if_it_is_killed(killed, tmp_path):
    (tmp_path / "script.py").write_text(ORPHANS.replace("{killed}", str(killed)))
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("w") as out:  # not a pipe, whose end workers could hold open
        process = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, stdout=out, timeout=60)
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    processes = [int(pid) for pid in (tmp_path / "out").read_text().split()]
    assert len(processes) == 1
    wait_until_gone(processes)


def test_workers_that_cannot_make_the_environment_say_so():
    parent = os.getpid()

    def only_here():
        if os.getpid() != parent:
            raise RuntimeError("no such robot")
        return Troubled()

    policy = make_policy()
    evaluator = make_worker_evaluator(policy, only_here, n_jobs=1)
    with pytest.raises(RuntimeError, match=r"(?s)cannot make the policy or the environment.*no such robot"):
        dict(evaluator(generation(policy, [0])))


def test_an_environment_with_other_spaces_than_the_policys_is_refused():
    images = spaces.Box(0, 255, (36, 40, 3), np.uint8), spaces.Box(0, 255, (3, 36, 40), np.uint8)
    env, policy = Troubled(), make_policy()
    check_spaces(env, policy)
    env.observation_space, policy.observation_space = images  # as SB3 turns them
    check_spaces(env, policy)
    for name, other in (("observation_space", spaces.Box(0, 1, (3,))), ("action_space", spaces.Discrete(2))):
        env = Troubled()
        setattr(env, name, other)
        with pytest.raises(ValueError, match=f"{name} of the workers' environment"):
            check_spaces(env, make_policy())


class Unrecorded(gym.Wrapper):
    """A wrapper of the old kind, whose arguments its specification does not know."""


def halved(reward):
    return 0.5 * reward


class Halved(gym.RewardWrapper):
    """The same as a wrapper of the old kind."""

    def reward(self, reward):
        return halved(reward)


def rebuilt(env):
    return cloudpickle.loads(cloudpickle.dumps(environment_maker(env)))()


def layers(env):
    names = []
    while isinstance(env, gym.Wrapper):
        names.append(type(env).__name__)
        env = env.env
    return [name for name in names if name not in ("PassiveEnvChecker", "Monitor")]


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.make("Pendulum-v1", max_episode_steps=7, g=3.0),
        lambda: FrameStackObservation(RescaleAction(gym.make("Pendulum-v1"), -0.5, 0.5), 4),
        lambda: Unrecorded(Monitor(gym.make("Pendulum-v1", g=3.0))),
        lambda: Monitor(Troubled("here")),
        lambda: gym.make("AntWall-v0"),
    ],
    ids=["arguments", "wrappers", "unrecorded-wrapper", "unregistered", "our-own"],
)
@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: DummyVecEnv([lambda: env])], ids=["env", "VecEnv"])
def test_an_environment_is_made_again_with_its_arguments_and_wrappers(make, wrap):
    env = make()
    again = rebuilt(wrap(env))
    assert again is not env
    assert layers(again) == layers(env)
    assert (again.observation_space, again.action_space) == (env.observation_space, env.action_space)
    for name in ("g", "marker"):
        assert getattr(again.unwrapped, name, None) == getattr(env.unwrapped, name, None)
    first, second = (e.reset(seed=3)[0] for e in (env, again))
    np.testing.assert_array_equal(first, second)


def test_a_file_that_a_monitor_writes_stays_with_its_process(tmp_path):
    env = Unrecorded(Monitor(gym.make("Pendulum-v1"), str(tmp_path / "here")))
    writer = env.env.results_writer
    assert rebuilt(env).env.results_writer is None
    assert env.env.results_writer is writer is not None


@pytest.mark.parametrize("scale", [lambda env: TransformReward(env, halved), Halved], ids=["specified", "copied"])
def test_what_a_monitor_inside_says_is_what_callbacks_hear(scale):
    env = rebuilt(make_vec_env("Pendulum-v1", wrapper_class=scale))
    outcome = run_episode(ES("MlpPolicy", "Pendulum-v1", device="cpu").policy, env, seed=0)
    assert outcome.monitored == {"r": pytest.approx(2 * outcome.episode_return, rel=1e-4), "l": 200, "t": 0.0}


def test_ids_specifications_and_functions_make_environments():
    assert rebuilt("Pendulum-v1").spec.id == "Pendulum-v1"
    assert rebuilt(gym.spec("Pendulum-v1")).spec.max_episode_steps == 200
    assert isinstance(rebuilt(lambda: Troubled()), Troubled)


def test_no_window_is_opened_by_workers():
    spec = deepcopy(gym.spec("Pendulum-v1"))
    spec.kwargs = {"render_mode": "human"}
    assert rebuilt(spec).render_mode is None


def test_environments_in_other_processes_are_made_again_from_their_specification():
    env = make_vec_env("Pendulum-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    assert rebuilt(env).spec.id == "Pendulum-v1"
    env.close()
    env = SubprocVecEnv([Troubled], start_method="fork")
    with pytest.raises(ValueError, match="pass a registered environment's id"):
        environment_maker(env)
    env.close()


def test_a_strategy_refuses_at_once_what_its_workers_cannot_make():
    with pytest.raises(ValueError, match="normalize_observations=True"):
        ES("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1")), n_jobs=2)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (VecNormalize, "normalize_observations=True"),
        (lambda env: VecFrameStack(env, 2), "FrameStackObservation"),
    ],
)
def test_wrappers_that_workers_do_not_see_are_refused_with_what_to_do(wrap, message):
    with pytest.raises(ValueError, match=message):
        environment_maker(wrap(DummyVecEnv([Troubled])))


def test_environments_that_cannot_travel_are_refused_with_what_to_do():
    env = Troubled()
    env.lock = threading.Lock()
    for bad in (env, lambda: env, "NoSuchEnv-v0", 3):
        with pytest.raises(ValueError, match="pass a registered environment's id"):
            environment_maker(bad)


def test_workers_know_the_environments_that_only_this_process_registered():
    gym.register("OnlyHere-v0", Troubled)
    try:
        specs = foreign_specs()
    finally:
        del gym.registry["OnlyHere-v0"]
    register_specs(specs)
    try:
        assert isinstance(gym.make("OnlyHere-v0").unwrapped, Troubled)
    finally:
        del gym.registry["OnlyHere-v0"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n_jobs": 0}, "n_jobs must be"),
        ({"n_jobs": 1.5}, "n_jobs must be"),
        ({"backend": "dask"}, 'backend must be "loky" or "ray"'),
        ({"ray_address": "auto"}, 'needs backend="ray"'),
        ({"episode_timeout": 0}, "episode_timeout must be"),
        ({"embedding": threading.Lock()}, "cannot be sent to worker processes"),
    ],
)
def test_bad_arguments_are_refused_before_a_process_starts(bad, message):
    with pytest.raises(ValueError, match=message):
        make_worker_evaluator(make_policy(), Troubled(), **bad)


def test_missing_ray_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "sb3-wng\[ray\]"'):
        make_worker_evaluator(make_policy(), Troubled(), backend="ray")
