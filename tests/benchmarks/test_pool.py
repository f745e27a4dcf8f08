import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("pybullet_envs_gymnasium")

from filelock import FileLock

from sb3_wng.benchmarks import conditioning, pool, unseen_states
from sb3_wng.benchmarks.checkpoints import only_one
from sb3_wng.benchmarks.pool import run_pending
from sb3_wng.benchmarks.records import append_records, read_records


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(pool, "make_pool", ThreadPoolExecutor)


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
    with FileLock(folder / "lock"):
        (folder / "is_held").touch()
        time.sleep(600)


def hold_in_a_pool(folder):
    with pool.make_pool(1) as workers:
        workers.submit(hold, folder).result()


def test_workers_end_with_the_process_that_made_them(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hold_in_a_pool, args=(tmp_path,))
    process.start()
    give_up = time.time() + 60
    while not (tmp_path / "is_held").exists() and time.time() < give_up:
        time.sleep(0.05)
    process.kill()
    with FileLock(tmp_path / "lock", timeout=30):  # or the worker would go on for ten minutes
        assert (tmp_path / "is_held").exists()


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
