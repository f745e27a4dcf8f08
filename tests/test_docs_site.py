"""The documentation builds without a warning, and its search finds what there is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-b",
        "html",
        "-d",
        folder / "trees",
        ROOT / "docs",
        folder / "html",
    ]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_page_is_on_the_site(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {path for path in pages if "_build" not in path.parts} <= {path.relative_to(site) for path in site.rglob("*.html")}


@pytest.mark.parametrize("word", ["wasserstein_coef", "BGWNPG", "sinkhorn"])
def test_search_finds(site, word):
    index = (site / "searchindex.js").read_text().lower()
    assert word.lower() in index


def test_every_public_algorithm_is_in_the_reference(site):
    import sb3_wng

    text = (site / "api" / "algorithms.html").read_text()
    names = [name for name in sb3_wng.__all__ if name.isupper()]
    assert names
    assert [name for name in names if f'id="sb3_wng.{name}"' not in text] == []
