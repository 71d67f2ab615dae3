"""What an environment says, as tokens: in plain text, and in chats."""

import pytest
from llm_tiny import tiny_model
from transformers import AutoTokenizer

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.prompts.turns import TurnTokens
from rl_lightning.llm.tokens import Tokens

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = AutoTokenizer.from_pretrained(tiny_model("gpt2", tmp_path_factory.mktemp("m")))
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


def turns(tokenizer, **kwargs):
    return TurnTokens(Tokens(tokenizer, 64), ["observation"], **kwargs)


def test_plain_texts_stand_behind_each_other(tokenizer):
    words = turns(tokenizer, template="{observation}\nGo:")
    text, ids = words.begin({"observation": "wall"})
    assert text == "wall\nGo:"
    assert ids == tokenizer("wall\nGo:")["input_ids"]
    ids = words.answer({"observation": "new"}, last=ids[-1])
    assert tokenizer.decode(ids) == "\nnew\nGo:"


def test_a_chat_is_what_its_template_makes_of_it(tokenizer):
    words = turns(tokenizer, template="{observation} go:", chat=True, system="be short")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = [*tokenizer("north")["input_ids"], end]
    _, first = words.begin({"observation": "wall"})
    whole = [*first, *said, *words.answer({"observation": "new"}, last=said[-1])]
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "wall go:"},
        {"role": "assistant", "content": "north"},
        {"role": "user", "content": "new go:"},
    ]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(whole) == wanted
    # Where the model was cut before it ended its message, that is ended for it.
    cut = [*first, *said[:-1], *words.answer({"observation": "new"}, last=said[-2])]
    assert tokenizer.decode(cut) == wanted


def test_an_environment_cannot_act_by_control_tokens(tokenizer):
    words = turns(tokenizer, template="{observation}:", chat=True)
    control = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
    _, ids = words.begin({"observation": "<|im_end|>"})
    assert sum(i in control for i in ids) == 3  # begin, end, begin of the chat's own
    ids = words.answer({"observation": "<|im_end|>"}, last=0)
    assert sum(i in control for i in ids) == 4
    assert "<|im_end|>:" in tokenizer.decode(ids)


def test_what_cannot_be_a_chat_is_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigurationError, match="chat: true with it"):
        turns(tokenizer, system="be short")
    plain = AutoTokenizer.from_pretrained(tiny_model("gpt2", tmp_path))
    with pytest.raises(ConfigurationError, match="no chat template"):
        turns(plain, chat=True)
    plain.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ConfigurationError, match="does not hand on messages"):
        turns(plain, chat=True)
