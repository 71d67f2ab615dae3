"""Every encoder, as a pair of the disguise it reads and what builds it."""

from functools import partial

import pytest
from llm_tiny import tiny_model

from rl_lightning.encoders import DictEncoder, ImpalaCNN, LLMEncoder, MLPEncoder, NatureCNN

small_cnn = partial(ImpalaCNN, features=32, channels=(4,))


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    bert, gpt2, llama = (
        tiny_model(kind, root / kind, layers=1, hidden=16) for kind in ("bert", "gpt2", "llama")
    )
    return {
        "mlp": ("vector", MLPEncoder),
        "one_hot": ("discrete", partial(MLPEncoder, hidden=(16,))),
        "nature": ("image", partial(NatureCNN, features=32)),
        "impala": ("small_image", small_cnn),
        "dict": ("dict", partial(DictEncoder, encoders={"image": small_cnn})),
        "tuple": ("tuple", DictEncoder),
        "mixed": (
            "mixed",
            partial(DictEncoder, encoders={"text": partial(LLMEncoder, model=bert, tune="lora")}),
        ),
        "llm_frozen": ("text", partial(LLMEncoder, model=bert)),
        "llm_lora": ("text", partial(LLMEncoder, model=gpt2, tune="lora", pooling="last")),
        "llm_full": ("text", partial(LLMEncoder, model=llama, tune="full")),
    }
