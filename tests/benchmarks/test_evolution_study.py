"""The study of evolution strategies: what runs leave, the released score, and the numbers of the table."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

pytest.importorskip("mujoco")

from sb3_wng.benchmarks import evolution_report, evolution_study, pool
from sb3_wng.benchmarks.evolution_study import POINT_WALL, ParentReturns, ReleasedNovelty
from sb3_wng.benchmarks.records import append_records, read_records


@pytest.fixture
def tiny(monkeypatch):
    common = {**POINT_WALL.common, "n_delta": 1}
    methods = {name: POINT_WALL.methods[name] for name in ("ES", "released score, published noise")}
    study = dataclasses.replace(POINT_WALL, n_iterations=10, common=common, methods=methods)
    monkeypatch.setitem(evolution_study.STUDIES, "point_wall", study)
    monkeypatch.setitem(evolution_report.STUDIES, "point_wall", study)
    return study


def test_runs_leave_curves_and_paths_that_the_report_reads(tiny, tmp_path):
    curves, paths = tmp_path / "point_wall.csv", tmp_path / "point_wall_paths.csv"
    for name, seed in evolution_study.unfinished(curves, tiny.methods, [0, 1]):
        records, path = evolution_study.run("point_wall", name, seed, tmp_path)
        assert [record["timesteps"] for record in records] == [5 * 3 * 50, 10 * 3 * 50]
        assert len(path["x"].split()) == len(path["y"].split()) == 50
        append_records(paths, [path])
        append_records(curves, records)
    assert evolution_study.unfinished(curves, tiny.methods, [0, 1, 2]) == [(name, 2) for name in tiny.methods]
    evolution_report.draw(tmp_path)
    text = evolution_report.section(tmp_path)
    assert "| ES | 0/2 [0.00, 0.66] |" in text
    assert all((tmp_path / f"point_wall{suffix}.png").stat().st_size > 0 for suffix in ("", "_paths"))


def test_without_results_there_is_no_section(tmp_path):
    assert evolution_report.section(tmp_path) == ""


def test_one_run_per_method_is_kept_but_not_reported(tiny, tmp_path):
    records, path = evolution_study.run("point_wall", "ES", 0, tmp_path)
    append_records(tmp_path / "point_wall_paths.csv", [path])
    append_records(tmp_path / "point_wall.csv", records)
    evolution_report.draw(tmp_path)
    assert evolution_report.section(tmp_path) == ""
    assert not list(tmp_path.glob("*.png"))


def test_a_run_past_the_deadline_leaves_nothing(tiny, tmp_path):
    assert evolution_study.run("point_wall", "ES", 0, tmp_path, deadline=0.0) == ([], {})


def test_an_interrupted_run_ends_as_an_undisturbed_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(evolution_study, "ITERATIONS_PER_CHECKPOINT", 4)
    curve, path = evolution_study.run("point_wall", "ES", 0, tmp_path / "undisturbed")
    interrupted, write = tmp_path / "interrupted", ParentReturns.write

    def fail_after_six(self, *arguments):
        if len(self.rows) == 6:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(ParentReturns, "write", fail_after_six)
    with pytest.raises(KeyboardInterrupt):
        evolution_study.run("point_wall", "ES", 0, interrupted)
    study = evolution_study.STUDIES["point_wall"]
    common = {**study.common, "delta_std": 0.2}
    with monkeypatch.context() as patch:
        patch.setitem(evolution_study.STUDIES, "point_wall", dataclasses.replace(study, common=common))
        with pytest.raises(ValueError, match=r"was made by .*, and not by .*'delta_std': 0.2.*: delete it to begin anew"):
            evolution_study.run("point_wall", "ES", 0, interrupted)
    calls = []
    monkeypatch.setattr(ParentReturns, "write", lambda self, *arguments: (calls.append(1), write(self, *arguments)))
    resumed, resumed_path = evolution_study.run("point_wall", "ES", 0, interrupted)
    assert len(calls) == 6  # of ten: four were in the checkpoint
    assert resumed_path == path
    assert [(r["timesteps"], r["return"]) for r in resumed] == [(r["timesteps"], r["return"]) for r in curve]
    assert float(resumed[-1]["cpu_seconds"]) >= float(resumed[0]["cpu_seconds"]) > 0


def test_the_command_keeps_no_checkpoint_of_a_finished_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(evolution_study, "ITERATIONS_PER_CHECKPOINT", 1)
    monkeypatch.setattr(pool, "ProcessPool", ThreadPoolExecutor)
    work = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["", "--methods", "ES", "--seeds", "0", "--output", str(tmp_path), "--work", str(work)])
    append_records(tmp_path / "point_wall_paths.csv", [{"algorithm": "ES", "seed": 0}])  # of a process that ended after that
    assert evolution_study.main() == 0
    assert work.exists()
    assert not list(work.iterdir())
    assert len(read_records(tmp_path / "point_wall.csv")) == 2
    assert len(read_records(tmp_path / "point_wall_paths.csv")) == 1


def test_all_methods_can_be_built():
    for key, study in evolution_study.STUDIES.items():
        for name in study.methods:
            assert evolution_study.make_model(study, name, 0).n_delta == 50, (key, name)


def test_escapes_are_counted_from_the_last_ten_policies():
    rows = [
        {"algorithm": name, "seed": seed, "timesteps": step, "return": value}
        for name, last in (("ES", [-780, -780, -560, -780]), ("BGWNES", [-560] * 4))
        for seed, end in enumerate(last)
        for step, value in ((1, -100), (2, end - 10), (3, end + 10))
    ]
    finals = evolution_report.final_returns(pd.DataFrame(rows))
    ends = {"ES": [13.6, 13.6, 25.0, 14.1], "BGWNES": [25.0, 71.0, 14.4, 13.0]}  # the wall's back is at 14.3
    ends["ES"].append(25.0)  # whose curve is not there yet
    paths = pd.DataFrame(
        [{"algorithm": name, "seed": seed, "x": f"0.0 20.0 {x}"} for name, last in ends.items() for seed, x in enumerate(last)]
    )
    table = evolution_report.results_table(finals, paths, POINT_WALL)
    assert list(table["ends past the wall"]) == ["1/4", "3/4"]
    assert table.loc["ES", "escaped"] == "1/4 [0.05, 0.70]"  # Wilson's interval, as tabulated
    assert table.loc["BGWNES", "escaped"] == "4/4 [0.51, 1.00]"
    assert table.loc["BGWNES", "against ES, p"] == "0.14"  # 2 * (4 choose 1) * (4 choose 4) / (8 choose 5)
    assert table.loc["ES", "mean return"].startswith("-725 ")


def test_released_score_is_minus_a_density_of_visited_behaviour():
    generator = torch.Generator().manual_seed(0)
    visited = 3 * torch.randn(60, 2, generator=generator)
    score = ReleasedNovelty(2)
    score.update(torch.full((1, 2), 50.0))
    for _ in range(5):
        score(visited)
    points = torch.cat([visited, visited + 30.0])
    density = torch.exp(-torch.cdist(points, visited).square() / 2).mean(dim=1)
    scores = score._scores(points)
    assert torch.corrcoef(torch.stack([scores, density]))[0, 1] < -0.8
    assert scores[60:].mean() > scores[:60].mean()


def test_released_score_remembers_the_last_policies():
    score = ReleasedNovelty(1, n_previous=2)
    for value in range(4):
        score.update(torch.tensor([[float(value)]]))
    assert score.previous.flatten().tolist() == [2.0, 3.0]
