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
    {"compress"},
    {"encoders", "envs"},
    {"policies", "rewards", "envs/text_games"},
    {"hyperparameters"},
    {"agents", "data/replay"},
    {"data/recordings", "data/prompts"},
    {"data/collect", "data/resume"},
    # `export` asks agents what they do, and has nothing to do with collecting.
    {"data", "export"},
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


# What other libraries keep to themselves, and where this one knows of it all the same.
INSIDES = {
    "trainer.py": None,  # Lightning's, with a contract test
    "nn/insides.py": None,  # torch's, likewise
    "envs/sync.py": None,  # Gymnasium's vector environments
    "envs/state/writer.py": {"_np_random"},  # asked for, a space's generator would be made
    "data/replay/arrays.py": {"_mmap"},  # NumPy's, to give memory back
    "cli/parser.py": {"_typehint"},  # jsonargparse's
    "llm/config.py": {"_attn_implementation", "_experts_implementation"},  # transformers'
    "llm/tune.py": {"_gradient_checkpointing_func"},
}


def own_names(tree):
    """Private names that a module gives to what is its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("self", "cls") and isinstance(node.ctx, ast.Store):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("file", FILES)
def test_nobody_touches_what_others_keep_to_themselves(file):
    tree = ast.parse((ROOT / file).read_text())
    own, known = set(own_names(tree)), INSIDES.get(file, set())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or known is None:
            continue
        private = node.attr.startswith("_") and not node.attr.startswith("__")
        if private and node.attr not in own | known:
            of_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            of_parent = ast.unparse(node.value) == "super()"
            assert of_itself or of_parent, f"{file}:{node.lineno}: {ast.unparse(node)}"


MOST_LINES = 350
MOST_LINES_OF_AN_AGENT = 250
MOST_SHARE = 0.15


@pytest.mark.parametrize("file", FILES)
def test_a_file_can_be_read_at_a_sitting(file):
    """A longer one would have to say why in its first line."""
    lines = (ROOT / file).read_text().count("\n")
    assert lines <= (MOST_LINES_OF_AN_AGENT if room(file) == "agents" else MOST_LINES)


def test_no_room_is_a_cellar():
    """But for agents, of which there are as many as there are algorithms."""
    sizes: dict[str, int] = {}
    for file in FILES:
        sizes[room(file)] = sizes.get(room(file), 0) + (ROOT / file).read_text().count("\n")
    total = sum(sizes.values())
    for name, size in sizes.items():
        assert name == "agents" or size <= MOST_SHARE * total, f"{name}: {size} of {total}"
