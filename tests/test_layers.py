"""The layers of the design: imports point to lower layers only."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "rl_lightning"
LAYERS = [
    {
        *("types", "charset", "errors", "tree", "checkpoints", "sharing", "spaces", "trust"),
        "names",
        "former",
        *("arguments", "bounds", "stopping"),
    },
    {"returns", "losses", "planning", "schedules", "exploration", "distributions", "nn"},
    {"llm"},
    {"encoders", "envs"},
    {"hyperparameters"},
    {"data", "agents"},
    {"callbacks"},
    {"cli", "config_file", "explain", "failures", "parser", "stored_config", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path):
    """The parts of rl_lightning that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rl_lightning."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("rl_lightning."):
                    yield alias.name.split(".")[1]


def test_no_import_points_upwards():
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in imports(path):
            same_level = LEVEL[other] == LEVEL[part] and other != part
            if LEVEL[other] > LEVEL[part] or (same_level and {other, part} & {"agents", "envs"}):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong


def test_only_llm_imports_the_language_model_libraries():
    for path in ROOT.rglob("*.py"):
        if "llm" in path.relative_to(ROOT).parts:
            continue
        text = path.read_text()
        assert "import transformers" not in text, path
        assert "import peft" not in text, path
        assert "from transformers" not in text, path
        assert "from peft" not in text, path
