"""Models of other families: what they need, or why they are refused."""

import pytest
import torch
from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone

TEXTS = ["go to the red ball", "go"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
TEXT = {**SMALL, "intermediate_size": 16, "vocab_size": 400}


def config(family):
    import transformers as t

    match family:
        case "mamba" | "falcon_mamba":
            kind = t.MambaConfig if family == "mamba" else t.FalconMambaConfig
            return kind(vocab_size=400, hidden_size=16, num_hidden_layers=2, state_size=4)
        case "mamba2":
            return t.Mamba2Config(
                vocab_size=400,
                hidden_size=16,
                num_hidden_layers=2,
                state_size=4,
                num_heads=4,
                head_dim=8,
                n_groups=2,
            )
        case "longformer":
            return t.LongformerConfig(**TEXT, attention_window=[4, 4])
        case "switch_transformers":
            return t.SwitchTransformersConfig(
                vocab_size=400,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=2,
                num_decoder_layers=2,
                num_sparse_encoder_layers=1,
                num_sparse_decoder_layers=1,
                num_heads=2,
                num_experts=4,
            )
        case "falcon":
            return t.FalconConfig(vocab_size=400, **SMALL)
        case "rwkv":
            return t.RwkvConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2)
        case "xlnet":
            return t.XLNetConfig(vocab_size=400, d_model=16, n_layer=2, n_head=2, d_inner=16)
        case "clip":
            return t.CLIPConfig(text_config=TEXT, vision_config=VISION)
        case "clip_text_model":
            return t.CLIPTextConfig(**TEXT)
        case "siglip":
            return t.SiglipConfig(text_config=TEXT, vision_config=VISION)
        case "vit":
            return t.ViTConfig(**VISION)
        case "wav2vec2":
            return t.Wav2Vec2Config(
                **SMALL,
                intermediate_size=16,
                conv_dim=(8, 8),
                conv_stride=(2, 2),
                conv_kernel=(2, 2),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        case "fnet":
            return t.FNetConfig(**{k: v for k, v in TEXT.items() if "heads" not in k})
        case "reformer":
            return t.ReformerConfig(
                vocab_size=400,
                hidden_size=16,
                attn_layers=["local", "lsh"],
                axial_pos_embds=False,
                num_attention_heads=2,
                attention_head_size=8,
                feed_forward_size=16,
            )


@pytest.fixture
def family(tiny, tmp_path):
    def save(name):
        import transformers as t

        with torch.random.fork_rng(devices=[]):
            t.AutoModel.from_config(config(name)).save_pretrained(tmp_path / name)
        t.AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def run(backbone, texts=TEXTS):
    return backbone(*backbone.tokens.pad(backbone.tokens(texts)))


def adapted(backbone):
    """The last names of the layers that have an adapter."""
    return {n.split(".lora_A")[0].split(".")[-1] for n in backbone.state_dict() if ".lora_A" in n}


LORA = {
    "mamba": {"in_proj", "x_proj"},
    "falcon_mamba": {"in_proj", "x_proj"},
    "mamba2": {"in_proj"},
    "longformer": {"query", "key", "value", "dense"},
    "falcon": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "rwkv": {"key", "receptance", "value", "output"},
}


@pytest.mark.parametrize("name", LORA)
def test_lora_adapts_every_linear_layer_that_text_runs_through(family, name):
    frozen = run(Backbone(model := family(name), max_length=32))
    backbone = Backbone(model, tune="lora", max_length=32)
    assert adapted(backbone) == LORA[name]
    torch.testing.assert_close(run(backbone), frozen, rtol=0, atol=1e-5)
    run(backbone).square().sum().backward()
    # An adapter without gradient does nothing, and stops DDP.
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("mamba", ["dt_proj"]),
        ("mamba", ["out_proj"]),
        ("longformer", ["query_global"]),
        ("longformer", ["value_global", "query"]),
    ],
)
def test_adapters_that_would_do_nothing_are_refused(family, name, targets):
    with pytest.raises(ConfigurationError, match=rf"lora_targets=\['{targets[0]}'.*there are"):
        Backbone(family(name), tune="lora", max_length=32, lora_targets=targets)


def test_experts_that_a_router_does_not_choose_have_adapters_too(family):
    backbone = Backbone(family("switch_transformers"), tune="lora", max_length=32)
    adapters = [name for name in backbone.state_dict() if ".experts." in name]
    assert all("lora_" in name for name in adapters)
    assert len({name.split(".experts.")[1].split(".")[0] for name in adapters}) == 4


def test_a_model_without_a_limit_of_positions(family):
    assert Backbone(family("xlnet"), max_length=600).tokens.max_length == 600


def test_a_text_tower_by_itself_is_a_language_model(family):
    assert run(Backbone(family("clip_text_model"), max_length=32)).shape[-1] == 16


@pytest.mark.parametrize("tune", ["frozen", "full"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clip", "is a clip, which reads text and more .vision.*CLIPTextModel"),
        ("siglip", "is a siglip, which reads text and more .vision"),
        ("vit", "is a vit, which reads pixel_values and no text"),
        ("wav2vec2", "is a wav2vec2, which reads input_values and no text"),
        ("fnet", "is a fnet, for which padding is text"),
        ("reformer", "is a reformer, which makes"),
    ],
)
def test_what_is_no_language_model_is_refused_by_type(family, name, why, tune):
    with pytest.raises(ConfigurationError, match=why) as raised:
        Backbone(family(name), tune=tune, max_length=32)
    assert len(str(raised.value)) < 700


def test_trying_a_model_out_leaves_no_trace(tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    backbone = Backbone(tiny["gpt2"], tune="frozen")
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m._forward_pre_hooks for m in backbone.modules() if isinstance(m, nn.Module))
