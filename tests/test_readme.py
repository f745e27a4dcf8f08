"""Every code block of the README, every Python block of the documentation and every example runs."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# the two set-up commands are installations: CI runs the test command itself, and the trained script runs below
SETUP = re.compile(r"<!-- (\w+)-command -->\n```bash\n(.*?)```\n<!-- /\1-command -->", re.DOTALL)
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", SETUP.sub("", README), re.DOTALL)
PAGES = {
    page.relative_to(ROOT).as_posix(): re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for page in sorted(ROOT.glob("docs/**/*.md"))
}


def run(command, cwd):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_there_are_blocks_for_every_way_of_use():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert len(BLOCKS) >= 4
    assert [name for name, _ in SETUP.findall(README)] == ["train", "test"]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=[block.strip().split("\n")[0][:40] for _, block in BLOCKS])
def test_block_runs_from_an_empty_directory(language, block, tmp_path):
    if language == "python":
        (tmp_path / "block.py").write_text(block)
        run([sys.executable, "block.py"], tmp_path)
    else:
        run(["bash", "-e", "-c", block], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(PAGES[page]))
    run([sys.executable, "page.py"], tmp_path)


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}, which does not exist"


@pytest.mark.slow
def test_the_training_command_ends_in_a_script_that_leaves_model_and_picture(tmp_path):
    command = dict(SETUP.findall(README))["train"].strip().split(" && ")[-1]
    script, *_ = command.removeprefix("python ").split()
    output = run([sys.executable, str(ROOT / script), "--timesteps", "6000", "--output", str(tmp_path / "run")], tmp_path)
    assert "mean return" in output
    for name in ("model.zip", "vecnormalize.pkl", "learning_curve.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_every_example_says_what_it_takes(example, tmp_path):
    assert "usage:" in run([sys.executable, str(ROOT / "examples" / example), "--help"], tmp_path)


def test_the_picture_of_the_three_metrics_is_drawn(tmp_path):
    run([sys.executable, str(ROOT / "examples" / "three_metrics.py"), "--output", "drawn.png"], tmp_path)
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.width > 800


@pytest.mark.parametrize(
    ("name", "constants"), [("transport_field", {"STAGES": (0, 1), "N_STEPS": 1024}), ("small_tasks", {})]
)
def test_pictures_of_steps_and_tasks_are_drawn(name, constants, tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert constants.keys() <= script.keys()
    script["main"].__globals__.update(constants)
    monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path / "drawn.png")])
    script["main"]()
    with Image.open(tmp_path / "drawn.png") as image:
        assert image.width > 400


@pytest.mark.slow
def test_robots_like_and_unlike_another_are_trained_and_drawn(tmp_path):
    pytest.importorskip("pybullet_envs_gymnasium")
    script = str(ROOT / "examples" / "like_that_agent.py")
    printed = run([sys.executable, script, "--steps", "2048", "--output", "drawn.png"], tmp_path)
    assert all(f"{name:12} return" in printed for name in ("the agent", "attracted", "indifferent", "repelled"))
    assert (tmp_path / "drawn.png").exists()
