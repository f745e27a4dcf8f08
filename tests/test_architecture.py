"""Imports point down only, and files and functions stay short."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sb3_wng"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_BODY_LINES = 60

# What each part of the package may import from the others; "" is sb3_wng itself, its public names
MAY_IMPORT = {
    "geometry": set(),
    "optim": {"geometry"},
    "behavior": {"geometry"},
    "envs": set(),
    "algorithms": {"geometry", "optim", "behavior"},
    "population": {"geometry", "optim", "behavior", "algorithms"},
    "benchmarks": {"", "geometry", "optim", "behavior", "algorithms", "envs", "population", "zoo_files"},
    "": {"geometry", "optim", "behavior", "algorithms", "envs", "population"},
    "zoo": {"", "algorithms", "envs", "population", "benchmarks", "zoo_files", "zoo_search"},
    "zoo_search": {"population"},
    "zoo_files": {"zoo_hyperparams"},
}
# Third parties: a closed list for the layers of plain PyTorch
MAY_USE = {"geometry": {"torch", "numpy", "ot"}, "optim": {"torch", "numpy"}}
MAY_USE_ZOO = {"zoo", "zoo_search", "benchmarks"}


def module_name(path: Path) -> str:
    """The dotted name of a file; a package's ends in ``.__init__``, so that its parent is the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def imports(module: str, source: str) -> Iterator[str]:
    """Absolute names of all modules that the source imports, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*parents, *filter(None, [node.module])])
            if origin == "sb3_wng":
                yield from (f"sb3_wng.{alias.name}" for alias in node.names)
            else:
                yield origin


def part_of(module: str) -> str:
    """The part of the package that a dotted name belongs to; public names belong to sb3_wng itself, ''."""
    part = module.partition(".")[2].partition(".")[0]
    return part if part in MAY_IMPORT or part == "zoo_hyperparams" else ""


def import_violations(module: str, source: str) -> list[str]:
    part = part_of(module)
    violations = []
    for name in imports(module, source):
        top = name.split(".")[0]
        if top == "sb3_wng":
            allowed = part_of(name) in MAY_IMPORT[part] | {part}
        elif part == "geometry" and top == "logging":
            allowed = False
        elif part in MAY_USE:
            allowed = top in MAY_USE[part] or top in sys.stdlib_module_names
        else:
            allowed = top != "rl_zoo3" or part in MAY_USE_ZOO
        if not allowed:
            violations.append(f"{module} imports {name}")
    return violations


def long_functions(source: str) -> list[str]:
    """Functions whose body, without the docstring, is too long."""
    functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    found = []
    for function in functions:
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        if body and body[-1].end_lineno - body[0].lineno + 1 > MAX_BODY_LINES:
            found.append(function.name)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down_only(path):
    assert import_violations(module_name(path), path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert long_functions(source) == []


def test_every_part_of_the_package_has_a_layer():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert parts - {"__init__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name)
def test_every_package_says_what_it_is_for(folder):
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sb3_wng.geometry.solve", "import stable_baselines3"),
        ("sb3_wng.geometry.solve", "import gymnasium as gym"),
        ("sb3_wng.geometry.solve", "import logging"),
        ("sb3_wng.geometry.solve", "from ..optim import damping"),
        ("sb3_wng.geometry.solve", "from .. import optim"),
        ("sb3_wng.geometry.__init__", "from ..algorithms.policies import x"),
        ("sb3_wng.optim.damping", "import sb3_wng.algorithms.policies"),
        ("sb3_wng.optim.damping", "from stable_baselines3.common import utils"),
        ("sb3_wng.optim.damping", "from sb3_wng import PG"),
        ("sb3_wng.behavior.bonuses", "def late():\n    from sb3_wng.optim.damping import x"),
        ("sb3_wng.envs.walls", "from sb3_wng import algorithms"),
        ("sb3_wng.algorithms.evolution", "from ..population import x"),
        ("sb3_wng.algorithms.evolution", "import rl_zoo3"),
        ("sb3_wng.benchmarks.run", "from sb3_wng.zoo import main"),
        ("sb3_wng.__init__", "from . import zoo"),
    ],
)
def test_planted_upward_imports_are_caught(module, source):
    assert import_violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sb3_wng.geometry.transport", "import math\nimport ot\nimport torch\nfrom .kernels import x"),
        ("sb3_wng.algorithms.__init__", "from .policy_gradient import PG\nfrom ..geometry import solve"),
        ("sb3_wng.population.svpg", "from stable_baselines3 import PPO\nfrom sb3_wng.algorithms import PG"),
        ("sb3_wng.benchmarks.run", "import rl_zoo3.utils\nfrom sb3_wng import PG, __version__"),
        ("sb3_wng.__init__", "from .algorithms import PG\nfrom sb3_wng import envs"),
        ("sb3_wng.zoo", "import rl_zoo3\nfrom sb3_wng import zoo_files"),
        ("sb3_wng.zoo_files", "from sb3_wng import zoo_hyperparams"),
    ],
)
def test_downward_imports_are_let_through(module, source):
    assert import_violations(module, source) == []


def test_planted_long_function_is_caught_and_docstrings_do_not_count():
    docstring = '    """First.\n' + "\n" * MAX_BODY_LINES + '    """\n'
    body = "    pass\n" * MAX_BODY_LINES
    assert long_functions("def short():\n" + docstring + body) == []
    assert long_functions("def long():\n" + docstring + body + "    pass\n") == ["long"]
