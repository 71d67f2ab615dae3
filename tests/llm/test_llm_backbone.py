import copy
import io
import pickle

import pytest
import torch
from llm_tiny import KINDS, tiny_model
from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm import Backbone

TEXTS = ["go to the red ball", "You see a wall 2 steps forward", "go"]


def run(backbone, texts=TEXTS):
    return backbone(*backbone.tokens.pad(backbone.tokens(texts)))


def perturb(backbone):
    """Move what is trained away from its start (LoRA starts as the unchanged model)."""
    with torch.no_grad():
        for p in backbone.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))


def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Agent(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(2, 2), Backbone(*args, **kwargs)])

    @property
    def backbone(self) -> Backbone:
        return self.parts[1]  # type: ignore[return-value]


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains_what_it_says(tiny, kind, tune):
    backbone = Backbone(tiny[kind], tune=tune)
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    everything = {n for n, _ in backbone.named_parameters()}
    if tune == "frozen":
        assert not trained
        return
    assert trained == (everything if tune == "full" else {n for n in everything if "lora_" in n})
    run(backbone).sum().backward()
    # A parameter without gradient would stop DDP.
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_lora_starts_as_the_unchanged_model(tiny, kind):
    torch.testing.assert_close(
        run(Backbone(tiny[kind], tune="lora")), run(Backbone(tiny[kind])), rtol=0, atol=1e-5
    )


def test_lora_knobs(tiny):
    def names(**kwargs):
        parameters = Backbone(tiny["bert"], tune="lora", **kwargs).named_parameters()
        return {n: p for n, p in parameters if p.requires_grad}

    assert {min(p.shape) for p in names(lora_rank=3).values()} == {3}
    assert len(names(lora_targets=["query", "value"])) == 3 * 2 * 2
    assert len(names()) == 3 * 6 * 2
    outputs = []
    for alpha in (8, 16):
        torch.manual_seed(0)
        backbone = Backbone(tiny["bert"], tune="lora", lora_alpha=alpha)
        perturb(backbone)
        outputs.append(run(backbone))
    assert not torch.allclose(*outputs)


def test_wrong_tuning_arguments(tiny):
    with pytest.raises(ConfigurationError, match=r"lora_targets=\['nope'\].*dense, key, query"):
        Backbone(tiny["bert"], tune="lora", lora_targets=["nope"])
    with pytest.raises(ConfigurationError, match="lora_targets"):
        Backbone(tiny["bert"], tune="lora", lora_targets=[])
    with pytest.raises(ConfigurationError, match="lora_rank=0"):
        Backbone(tiny["bert"], tune="lora", lora_rank=0)
    with pytest.raises(ConfigurationError, match="tune='some'"):
        Backbone(tiny["bert"], tune="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="gradient_checkpointing"):
        Backbone(tiny["bert"], gradient_checkpointing=True)
    with pytest.raises(ConfigurationError, match="max_length=257 is more than the 256"):
        Backbone(tiny["gpt2"], max_length=257)
    assert Backbone(tiny["t5"], max_length=600).tokens.max_length == 600


def test_roberta_reads_fewer_tokens_than_its_table_has_rows(tiny, tmp_path):
    import transformers as t

    config = t.RobertaConfig(
        vocab_size=400,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
    )
    t.RobertaModel(config).save_pretrained(tmp_path)
    t.AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="max_length=19 is more than the 18"):
        Backbone(str(tmp_path), max_length=19)
    backbone = Backbone(str(tmp_path), max_length=18)
    with pytest.warns(UserWarning, match="was cut"):
        assert run(backbone, ["key " * 30]).shape == (1, 18, 8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_is_the_same_function(tiny, kind, checkpointing):
    # With dropout in the config PPO's first ratio would not be 1.
    backbone = Backbone(tiny[kind], tune="full", gradient_checkpointing=checkpointing)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5  # as if the config's probability had escaped us
    nn.Sequential(backbone).train()
    trained = run(backbone)
    assert trained.requires_grad
    backbone.eval()
    assert torch.equal(trained, run(backbone))


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_recomputes_and_changes_no_gradient(tiny, kind, tune):
    gradients, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(tiny[kind], tune=tune, gradient_checkpointing=checkpointing).train()
        perturb(backbone)
        layers = next(m for m in backbone.modules() if isinstance(m, nn.ModuleList))
        inner = next(
            m for m in layers[0].modules() if next(m.parameters(recurse=False), None) is not None
        )
        count = []
        inner.register_forward_hook(lambda *_, count=count: count.append(1))
        run(backbone).square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_state_dict_holds_only_what_training_changes(tiny):
    def keys(**kwargs):
        return {k for k in Agent(tiny["bert"], **kwargs).state_dict() if k.startswith("parts.1")}

    assert keys() == {"parts.1._extra_state"}
    lora = keys(tune="lora")
    assert lora - {"parts.1._extra_state"} == {k for k in lora if "lora_" in k}
    everything = keys(tune="full")
    assert len(everything) > 40
    assert keys(pretrained=False) == everything
    random_lora = keys(tune="lora", pretrained=False)
    assert {k.replace("base_model.model.", "").replace(".base_layer", "") for k in random_lora} > (
        everything
    )


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_saved_and_loaded_strictly_is_the_same_function(tiny, kind, tune, pretrained):
    agents = []
    for seed in range(2):
        torch.manual_seed(seed)
        agents.append(Agent(tiny[kind], tune=tune, pretrained=pretrained))
        perturb(agents[-1])
    one, two = agents
    two.load_state_dict(saved(one), strict=True)
    assert torch.equal(run(one.backbone), run(two.backbone))
    again = copy.deepcopy(two)
    again.load_state_dict(saved(one), strict=True, assign=True)
    assert torch.equal(run(one.backbone), run(again.backbone))
    assert saved(again).keys() == saved(one).keys()


def test_a_missing_trained_tensor_is_still_noticed(tiny):
    agent = Agent(tiny["bert"], tune="lora")
    state = saved(agent)
    name = next(k for k in state if "lora_A" in k)
    del state[name]
    with pytest.raises(RuntimeError, match=name):
        agent.load_state_dict(state)


def test_another_backbone_is_refused(tiny, tmp_path):
    other = tiny_model("bert", tmp_path / "other", seed=1)
    state = saved(Agent(tiny["bert"]))
    for agent in (Agent(other), Agent(tiny["bert"], dtype="bfloat16")):
        with pytest.raises(ConfigurationError, match="other weights"):
            agent.load_state_dict(state)
    with pytest.raises(ConfigurationError, match="layers=2"):
        Agent(tiny["bert"], layers=2).load_state_dict(state)
    with pytest.raises(ConfigurationError, match=r"checkpoint expects the backbone .* by name"):
        Agent(tiny["bert"], pretrained=False).load_state_dict(state)
    with pytest.raises(ConfigurationError, match=r"model expects the backbone .* by name"):
        Agent(tiny["bert"]).load_state_dict(saved(Agent(tiny["bert"], pretrained=False)))


def test_digest_is_of_the_weights_alone(tiny, tmp_path):
    digest = Backbone(tiny["bert"]).digest()
    same = tiny_model("bert", tmp_path / "same")
    assert Backbone(same).digest() == digest
    assert Backbone(tiny["bert"], tune="lora").digest() == digest
    assert Backbone(tiny["bert"], layers=2).digest() != digest
    backbone = Backbone(tiny["bert"], pretrained=False)
    before = backbone.digest()
    backbone.load_state_dict(Backbone(tiny["bert"], pretrained=False).state_dict())
    assert backbone.digest() != before


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_deep_copies_share_only_what_never_changes(tiny, tune):
    one = Backbone(tiny["bert"], tune=tune)
    perturb(one)
    two = copy.deepcopy(one)
    pairs = list(zip(one.named_parameters(), two.named_parameters(), strict=True))
    for (name, p), (_, q) in pairs:
        assert p is not q
        assert (p.data_ptr() == q.data_ptr()) == (not p.requires_grad), name
    expected = run(one).detach()
    assert torch.equal(run(two), expected)
    two.requires_grad_(False)  # a target network
    assert saved(two).keys() == saved(one).keys()
    perturb(one)
    assert torch.equal(run(two), expected)
    random = Backbone(tiny["bert"], pretrained=False)
    assert not {p.data_ptr() for p in random.parameters()} & {
        p.data_ptr() for p in copy.deepcopy(random).parameters()
    }


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_a_deep_copy_on_another_device_leaves_the_original_where_it_is(tiny, tune):
    one = Backbone(tiny["bert"], tune=tune)
    copy.deepcopy(one).to("meta")
    assert {p.device.type for p in one.parameters()} == {"cpu"}
    run(one)


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
def test_pickled(tiny, tune):
    one = Backbone(tiny["gpt2"], tune=tune, gradient_checkpointing=tune != "frozen")
    two = pickle.loads(pickle.dumps(one))
    assert torch.equal(run(one), run(two))
    assert two.state_dict().keys() == one.state_dict().keys()


def test_frozen_weights_keep_their_dtype(tiny):
    for tune, expected in (("frozen", torch.float32), ("full", torch.bfloat16)):
        backbone = nn.Sequential(Backbone(tiny["bert"], tune=tune)).to(torch.bfloat16)
        assert {p.dtype for p in backbone.parameters()} == {expected}
    assert {p.dtype for p in Backbone(tiny["bert"], dtype="bfloat16").float().parameters()} == {
        torch.bfloat16
    }
    lora = Backbone(tiny["bert"], tune="lora", dtype="bfloat16")
    assert {p.dtype for p in lora.parameters() if p.requires_grad} == {torch.float32}
    assert run(lora).dtype == torch.bfloat16


def test_moves_to_another_device(tiny):
    backbone = Backbone(tiny["bert"], tune="lora").to("meta")
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
