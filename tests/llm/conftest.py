import pytest
from llm_tiny import KINDS, tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny random models by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_model(kind, root / kind) for kind in KINDS}
