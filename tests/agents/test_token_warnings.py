"""What agents of tokens say of a run in which something is wrong."""

import warnings

import pytest
import torch
from token_tools import characters, letters_in, make, prompts
from training import fit, make_trainer

from rl_lightning import PromptDataModule
from rl_lightning.core.errors import RunError
from rl_lightning.llm.generators import TransformersGenerator


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return characters(tmp_path_factory.mktemp("model") / "characters")


class Another(TransformersGenerator):
    """Says other log-probabilities than the model has."""

    def __call__(self, *args, **kwargs):
        written = super().__call__(*args, **kwargs)
        return written._replace(log_prob=written.log_prob - 0.5)


def told(fit):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit()
    return [str(one.message) for one in found if "nats a token apart" in str(one.message)]


@pytest.mark.parametrize("passes", [1, 2])
def test_what_another_model_has_written_is_told_of_once_a_fit(passes, model):
    agent = make("GRPO", model)
    for generator, times in ((None, 0), (Another(), 1), (Another(), 1)):
        agent.frames = 0
        data = prompts(generator=generator, passes=passes)
        trainer = make_trainer(log_every_n_steps=1)
        said = told(lambda data=data, trainer=trainer: trainer.fit(agent, data))
        assert len(said) == times
        assert all("0.5 nats a token apart (policy/sampler_gap)" in one for one in said)


def test_a_recurrent_model_writes_what_it_learns_from_where_nothing_is_padded(tmp_path):
    from transformers import AutoTokenizer, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    folder = characters(tmp_path)
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=32,
        attention_window_size=64,
    )
    recurrent = RecurrentGemmaForCausalLM(config)
    for parameter in recurrent.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    recurrent.save_pretrained(folder)
    gaps = []
    for size in (256, 1):
        agent = make("GRPO", folder)
        data = PromptDataModule(
            ["1:", "a1234567:", "12:", "abcdefghij:"],
            rewards=[letters_in],
            val_share=0.0,
            prompts_per_step=4,
            group_size=2,
            total_prompts=4,
            max_new_tokens=6,
            generator=TransformersGenerator(batch_size=size),
        )
        fit(agent, data, log_every_n_steps=1)
        gaps.append(float(agent.trainer.callback_metrics["policy/sampler_gap"]))
    assert gaps[0] > 0.01
    assert gaps[1] < 1e-5


def test_lost_numbers_are_answered_by_what_agents_of_tokens_have(model):
    agent = make("GRPO", model, optimizer=lambda groups: torch.optim.SGD(groups, lr=1e38))
    with pytest.raises(
        RunError, match=r"nothing more can be learned.*model\.max_grad_norm"
    ) as told:
        make_trainer(gradient_clip_val=None).fit(agent, prompts())
    assert "model.dtype: float32" in str(told.value)
    assert not any(word in str(told.value) for word in ("normalize", "ClipReward"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_few_digits_are_too_few_for_small_updates(dtype, model):
    says = rf"model\.dtype: {dtype} with model\.tune: full: .* bf16-mixed"
    with pytest.warns(UserWarning, match=says) as found:
        make("GRPO", model, dtype=dtype)
    assert ("float16 soon ends in nan" in str(found[0].message)) == (dtype == "float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("GRPO", model, dtype=dtype, tune="lora")
        make("GRPO", model)
