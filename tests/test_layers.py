"""The rooms of the design: imports lead to lower rooms only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rl_lightning"
# From the ground up; rooms on one storey do not import each other.
STOREYS = [
    {"core"},
    {"trainer"},
    {"maths"},
    {"nn"},
    {"llm", "exploration"},
    {"encoders", "envs"},
    {"policies", "hyperparameters"},
    {"agents", "data/replay"},
    {"data/recordings"},
    {"data/collect", "data/resume"},
    {"data"},
    {"callbacks"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}
# What a room may not import from below, either.
STRANGERS = {("data", "agents"), ("callbacks", "agents")}


def room(path: str) -> str:
    """The room of a module, `a.b.c` or `a/b/c.py`, below the package."""
    parts = path.removesuffix(".py").replace(".", "/").split("/")
    inner = "/".join(parts[:2])
    return inner if inner in LEVEL else parts[0]


def imports(path: Path):
    """The modules of rl_lightning that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl_lightning."):
            yield node.module.removeprefix("rl_lightning.")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("rl_lightning."):
                    yield alias.name.removeprefix("rl_lightning.")


FILES = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")]


@pytest.mark.parametrize("file", [f for f in FILES if f not in ("__init__.py",)])
def test_imports_lead_to_lower_rooms(file):
    own = room(file)
    for module in imports(ROOT / file):
        other = room(module)
        lower = LEVEL[other] < LEVEL[own] or other == own
        # A package offers what its rooms hold.
        offers = file.endswith("__init__.py") and other.startswith(f"{own}/")
        assert lower or offers, f"{file} imports {module}"
        assert not any(own.startswith(a) and other.startswith(b) for a, b in STRANGERS), file


def test_only_llm_imports_the_language_model_libraries():
    for path in ROOT.rglob("*.py"):
        if "llm" in path.relative_to(ROOT).parts:
            continue
        text = path.read_text()
        assert "import transformers" not in text, path
        assert "import peft" not in text, path
        assert "from transformers" not in text, path
        assert "from peft" not in text, path
