import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("pybullet_envs_gymnasium")

from filelock import FileLock

from sb3_wng.benchmarks import conditioning, pool, unseen_states
from sb3_wng.benchmarks.checkpoints import only_one
from sb3_wng.benchmarks.pool import ProcessPool, run_pending
from sb3_wng.benchmarks.records import append_records, read_records


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(pool, "ProcessPool", ThreadPoolExecutor)


def divide(a, b):
    return a / b


def test_runs_are_recorded_one_by_one_and_a_failing_one_costs_only_itself(threads, tmp_path, capsys):
    recorded, path = {}, tmp_path / "study.csv"

    def pending():
        with pytest.raises(RuntimeError, match="another process is writing"), only_one(path):
            pass  # the file is held before it is read
        return [(4, 2), (1, 0), (9, 3)]

    def record(key, result):
        recorded[key] = result
        return result > 2

    assert not run_pending(path, 2, pending, divide, record)
    assert recorded == {(4, 2): 2, (9, 3): 3}
    printed = capsys.readouterr().out
    assert "failed: 1 0 ZeroDivisionError" in printed
    assert "3/3" in printed or "2/3" in printed
    assert "9 3 to finish: 0 min" in printed
    assert "4 2 paused" in printed
    assert not run_pending(path, 2, lambda: [(4, 2)], divide, record)
    assert run_pending(path, 2, lambda: [(9, 3)], divide, record)


def hold(folder):
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        (folder / "is_held").touch()
        time.sleep(600)


def wait_for(path):
    give_up = time.time() + 60
    while not path.exists() and time.time() < give_up:
        time.sleep(0.05)
    assert path.exists()


def hold_in_a_pool(folder):
    with ProcessPool(1) as workers:
        workers.submit(hold, folder).result()


def test_workers_end_with_the_process_that_made_them(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold_in_a_pool, args=(tmp_path,))
    process.start()
    wait_for(tmp_path / "is_held")
    process.kill()
    with FileLock(tmp_path / "lock", timeout=30):  # or the worker would go on for ten minutes
        process.join()


def test_an_error_ends_the_workers_and_starts_no_other_run(tmp_path, monkeypatch):
    def pending():
        return [(tmp_path,), (tmp_path / "waits",)]

    def interrupted(*_):
        wait_for(tmp_path / "is_held")
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pending(tmp_path / "study.csv", 1, pending, hold, lambda *_: True)
    with FileLock(tmp_path / "lock", timeout=0):
        assert not (tmp_path / "waits").exists()


def end_abruptly(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupt":  # Ctrl-C, which the terminal sends to every process
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
    return how


def test_a_run_whose_process_dies_fails_alone(tmp_path, capsys):
    recorded = []
    keys = [("kill",), ("interrupt",), ("none",)]
    assert not run_pending(tmp_path / "study.csv", 1, lambda: keys, end_abruptly, lambda _, how: not recorded.append(how))
    assert recorded == ["none"]
    printed = capsys.readouterr().out
    assert "failed: kill BrokenProcessPool" in printed
    assert "failed: interrupt BrokenProcessPool" in printed


def test_a_run_named_twice_is_run_once(threads, tmp_path):
    recorded = []
    assert run_pending(tmp_path / "study.csv", 1, lambda: [(4, 2)] * 3, divide, lambda key, _: not recorded.append(key))
    assert recorded == [(4, 2)]


def run_of_states(damping, seed):
    if seed == 1:
        raise OSError("no memory")
    return [{"damping": damping, "seed": seed}]


def run_of_conditioning(environment, algorithm, seed, output):
    if seed == 1:
        raise OSError("no memory")
    append_records(output, [{"environment": environment, "algorithm": algorithm, "seed": seed}])


@pytest.mark.parametrize(
    ("study", "run", "per_seed", "once"),
    [
        (unseen_states, run_of_states, len(unseen_states.DAMPINGS), 0),
        (
            conditioning,
            run_of_conditioning,
            len(conditioning.EXPERIMENT.environments) * len(conditioning.EXPERIMENT.methods),
            len(conditioning.EXPERIMENT.environments),
        ),
    ],
)
def test_studies_keep_what_is_finished_and_say_what_failed(study, run, per_seed, once, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run", run)
    path = tmp_path / study.CSV
    for seeds, status, n_rows in (("01", 1, 1), ("0", 0, 1), ("02", 0, 2)):
        monkeypatch.setattr("sys.argv", ["", "--seeds", *seeds, "--output", str(path)])
        assert study.main() == status
        assert len(read_records(path)) == once + n_rows * per_seed
