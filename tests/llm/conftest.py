import pytest
from llm_tiny import KINDS, WRITERS, stirred, tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny random models by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_model(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def writers(tmp_path_factory):
    """Folders of models that write, by kind."""
    root = tmp_path_factory.mktemp("adapted")
    return {kind: tiny_model(kind, root / kind) for kind in (*WRITERS, "t5", "mamba")}


@pytest.fixture(scope="session")
def adapted(writers):
    """Backbones with adapters by kind."""
    from rl_lightning.llm import Backbone

    return {kind: stirred(Backbone(path, tune="lora", head=True)) for kind, path in writers.items()}
