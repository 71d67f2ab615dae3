import copy
import io
import json
import shutil
import warnings
from collections.abc import Callable

import gymnasium as gym
import pytest
import torch
from alone import run_alone
from llm_tiny import KINDS, tiny_model
from tensordict import TensorDict
from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.resume.remembered import inside
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.text import LLMEncoder

SPEC = EnvSpec(gym.spaces.Text(200), gym.spaces.Discrete(4), "Maze-v0")
POOLINGS = ("mean", "last", "cls")
TEXTS = (
    "go to the red ball",
    "You see a wall 2 steps forward. You see a grey box 1 step left and 3 steps forward",
    "go",
    "",
    "You carry a blue key",
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny_model(kind, root / kind) for kind in KINDS}


@pytest.fixture
def encoder(tiny):
    return lambda kind="bert", **kwargs: LLMEncoder(SPEC, tiny[kind], **kwargs)


def features(encoder, texts=TEXTS):
    with torch.no_grad():
        return encoder(encoder.preprocess(texts))


def perturb(encoder):
    with torch.no_grad():
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return encoder


def rows_read(encoder):
    """A list that grows by the shape of each batch the model reads."""
    shapes = []
    encoder.backbone.register_forward_hook(lambda _, args, out: shapes.append(tuple(args[0].shape)))
    return shapes


def saved(state):
    file = io.BytesIO()
    torch.save(inside(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- one vector per text ----------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_batched_is_single(encoder, kind, tune, pooling):
    one = perturb(encoder(kind, tune=tune, pooling=pooling, cache_size=0))
    batch = features(one)
    assert batch.shape == (5, one.out_dim) == (5, 32)
    assert batch.dtype == torch.float32
    assert batch.isfinite().all()
    single = torch.cat([features(one, (text,)) for text in TEXTS])
    torch.testing.assert_close(batch, single, rtol=1e-4, atol=1e-5)
    if pooling != "cls" or kind in ("bert", "t5"):
        assert torch.cdist(batch, batch).fill_diagonal_(1).min() > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_is_what_transformers_computes_for_one_text(tiny, encoder, kind, pooling):
    import transformers as t

    model_class = t.T5EncoderModel if kind == "t5" else t.AutoModel
    model = model_class.from_pretrained(tiny[kind]).eval()
    ids = torch.tensor([t.AutoTokenizer.from_pretrained(tiny[kind])(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        hidden = model(input_ids=ids).last_hidden_state[0]
    expected = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]
    got = features(encoder(kind, pooling=pooling))[1]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_frozen_and_untrained_lora_are_the_same_features(encoder):
    torch.testing.assert_close(
        features(encoder(tune="lora")), features(encoder()), rtol=1e-4, atol=1e-5
    )


# --- frozen: preprocess does everything, once per text ------------------------------------------


def test_cached_is_fresh_and_the_model_reads_each_text_once(encoder):
    one, fresh = encoder(), encoder(cache_size=0)
    read = rows_read(one)
    first = features(one, TEXTS)
    assert sum(n for n, _ in read) == 5
    again = features(one, (TEXTS[3], TEXTS[0], TEXTS[3]))
    assert sum(n for n, _ in read) == 5
    assert torch.equal(again, first[[3, 0, 3]])
    torch.testing.assert_close(first, features(fresh, TEXTS), rtol=1e-4, atol=1e-5)
    assert not one.preprocess(TEXTS).requires_grad


def test_forward_returns_what_is_stored(encoder):
    one = encoder()
    read = rows_read(one)
    x = torch.randn(7, 32)
    assert one(x) is x
    assert read == []


def test_batch_size_and_little_padding(encoder):
    one = encoder(batch_size=2)
    read = rows_read(one)
    one.preprocess((TEXTS[1], "go", "go to", TEXTS[1] + " box", "go to the"))
    assert [n for n, _ in read] == [2, 2, 1]
    widths = [width for _, width in read]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] / 2


def test_autocast_changes_no_remembered_vector(encoder):
    one, two = encoder(), encoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = one.preprocess(TEXTS)
    assert torch.equal(low, two.preprocess(TEXTS))


def test_a_default_dtype_changes_no_remembered_vector(encoder):
    # Lightning's precision="bf16-true" sets it, and casts every module that lets it.
    one, two = encoder().to(torch.bfloat16), encoder()
    torch.set_default_dtype(torch.bfloat16)
    try:
        low = one.preprocess(TEXTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(low, two.preprocess(TEXTS))


def test_inference_mode_leaves_nothing_behind(encoder):
    one = encoder(cache_size=3)
    with torch.inference_mode():
        one.preprocess(TEXTS)
    x = one.preprocess(("new", *TEXTS))
    nn.Linear(32, 1)(x).sum().backward()


def test_metrics(encoder):
    one = encoder()
    assert one.metrics() == {"llm/cache_size": 0.0}
    one.preprocess(("a", "b", "a", "a"))
    assert one.metrics() == {"llm/cache_size": 2.0, "llm/cache_hit_rate": 0.5}
    one.preprocess(("a", "b"))
    assert one.metrics() == {"llm/cache_size": 2.0, "llm/cache_hit_rate": 1.0}
    assert encoder(tune="lora").metrics() == {}
    small = encoder(cache_size=1)
    small.preprocess(TEXTS)
    assert small.metrics()["llm/cache_size"] == 1


def test_inf_is_an_error_not_a_feature(encoder):
    one = encoder(dtype="float16")
    nn.init.constant_(next(one.parameters()), torch.inf)
    with pytest.raises(FloatingPointError, match="'float16'"):
        one.preprocess(TEXTS)


# --- resuming ------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(encoder):
    sentences = [
        f"You see a {c} {o}" + " far away" * n for c in "abcd" for o in "xy" for n in (0, 3)
    ]
    steps = [tuple(sentences[(i * k) % 16] for k in (1, 3, 5, 8)) for i in range(40)]
    whole, one = encoder(cache_size=9), encoder(cache_size=9)
    for step in steps[:20]:
        whole.preprocess(step)
        one.preprocess(step)
    resumed = encoder(cache_size=9)
    resumed.load_collection_state(saved(one.collection_state()))
    for step in steps[20:]:
        assert torch.equal(resumed.preprocess(step), whole.preprocess(step))
    assert resumed.metrics() == whole.metrics()
    keys = [one.collection_state()["remembered"].keys for one in (resumed, whole)]
    assert keys[0] == keys[1]


def test_vectors_come_from_the_state_and_not_from_the_model(encoder):
    one, two = encoder(), encoder()
    one.preprocess(TEXTS)
    state = one.collection_state()
    state["remembered"].rows.add_(1)  # shows where a vector came from
    two.load_collection_state(state)
    assert torch.equal(two.preprocess(TEXTS), one.preprocess(TEXTS) + 1)


@pytest.mark.parametrize(
    "other",
    [
        {"pooling": "cls"},
        {"layers": 2},
        {"dtype": "bfloat16"},
        {"max_length": 64},
        {"normalize": True},
        {"kind": "gpt2"},
        {"pretrained": False},
    ],
)
def test_another_models_cache_is_refused(encoder, other):
    one, two = encoder(), encoder(**other)
    one.preprocess(TEXTS)
    two.preprocess(("something",))
    with pytest.warns(UserWarning, match="another model"):
        two.load_collection_state(saved(one.collection_state()))
    assert two.metrics()["llm/cache_size"] == 0


@pytest.mark.filterwarnings("ignore:.*was cut")
@pytest.mark.parametrize("split", [True, False])
def test_vectors_of_texts_read_otherwise_are_not_restored(encoder, split):
    """A version that took `[SEP]` in a text for a separator did not say so in what it saved."""
    long = "far " * 400
    one, two = encoder(split_special_tokens=not split), encoder(split_special_tokens=split)
    texts = ("go", "go [SEP] now", "a [sep]", "SEP", long)
    one.preprocess(texts)
    state = saved(one.collection_state())
    if split:
        del state["split_special_tokens"]
    two.load_collection_state(state)
    # Of the long one only a digest is known.
    assert two.cache.state()[0] == ["go", "SEP"]
    assert torch.equal(two.preprocess(("go", "SEP")), one.preprocess(("go", "SEP")))
    same = encoder(split_special_tokens=split)
    same.load_collection_state(saved(two.collection_state()))
    assert len(same.cache) == 2
    two.preprocess((*texts, long))
    same.load_collection_state(saved(two.collection_state()))
    assert len(same.cache) == 5


def test_nothing_to_resume_for_a_tuned_model(encoder):
    one = encoder(tune="lora")
    one.preprocess(TEXTS)
    assert one.collection_state() == {}
    one.load_collection_state({})
    encoder().load_collection_state({})


def test_other_random_weights_void_the_cache(encoder):
    torch.manual_seed(0)
    one = encoder(pretrained=False)
    torch.manual_seed(1)
    two = encoder(pretrained=False)
    before = two.preprocess(TEXTS)
    nn.Sequential(two).load_state_dict(saved(nn.Sequential(one).state_dict()))
    assert not torch.allclose(two.preprocess(TEXTS), before)
    assert torch.equal(two.preprocess(TEXTS), one.preprocess(TEXTS))


def test_checkpoints_are_small(encoder):
    def size(**kwargs):
        file = io.BytesIO()
        torch.save(encoder(**kwargs).state_dict(), file)
        return len(file.getvalue())

    assert size() < 10_000  # names of modules, and a digest
    assert size(tune="lora", lora_rank=1) < size(tune="full") / 3
    assert size(pretrained=False) > 150_000


# --- tuned: preprocess tokenises, forward runs the model -----------------------------------------


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_stored_form(encoder, tune):
    one = encoder("gpt2", tune=tune, max_length=40)
    read = rows_read(one)
    x = one.preprocess(TEXTS)
    assert read == []
    assert x["input_ids"].shape == x["attention_mask"].shape == (5, 40)
    assert x["input_ids"].dtype == torch.int32
    assert x["attention_mask"].dtype == torch.bool
    assert x["attention_mask"].sum(1).tolist() == [len(r) for r in one.backbone.tokens(TEXTS)]
    again = one.preprocess(TEXTS[::-1])
    assert torch.equal(again["input_ids"], x["input_ids"].flip(0))
    assert torch.equal(again["attention_mask"], x["attention_mask"].flip(0))
    stored = TensorDict(x, batch_size=[5])
    assert torch.equal(one(stored[[1, 2]]), one({k: v[[1, 2]] for k, v in x.items()}))
    assert read[0][1] == int(x["attention_mask"].sum(1).max())  # trimmed
    assert one({k: v[:0] for k, v in x.items()}).shape == (0, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_repetitions_cost_nothing_and_change_nothing(encoder, kind):
    one = perturb(encoder(kind, tune="lora"))
    texts = (*TEXTS, TEXTS[1], TEXTS[2], TEXTS[1])
    x = one.preprocess(texts)
    weight = torch.randn(len(texts), 32)

    def gradient(out):
        one.zero_grad()
        (out * weight).sum().backward()
        return out.detach(), [p.grad.clone() for p in one.parameters() if p.grad is not None]

    read = rows_read(one)
    with_dedup = gradient(one(x))
    assert [n for n, _ in read] == [5]
    without = gradient(one._features(x["input_ids"], x["attention_mask"]))
    assert len(without[1]) > 10
    torch.testing.assert_close(with_dedup, without, rtol=1e-4, atol=1e-4)


def test_without_repetitions_the_order_is_kept_and_nothing_is_sorted(encoder):
    one = encoder(tune="lora")
    x = one.preprocess(TEXTS)
    longest = int(x["attention_mask"].sum(1).max())
    plain = one._features(x["input_ids"][:, :longest], x["attention_mask"][:, :longest])
    assert torch.equal(one(x), plain)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pad_token_in_the_text_is_text(encoder, pooling):
    # Where control tokens act, GPT-2 is padded with its end-of-text token: same ids, another mask.
    one = encoder("gpt2", tune="lora", pooling=pooling, split_special_tokens=False)
    texts = ("go", "go<|endoftext|>", "go<|endoftext|><|endoftext|>")
    x = one.preprocess((*texts, *texts))
    assert torch.equal(x["input_ids"][0], x["input_ids"][1])
    out = one(x)
    assert torch.equal(out[:3], out[3:])
    if pooling != "cls":
        assert not torch.allclose(out[0], out[1])
    frozen = features(encoder("gpt2", pooling=pooling, split_special_tokens=False), texts)
    torch.testing.assert_close(out[:3], frozen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_learns(encoder, kind, tune):
    torch.manual_seed(0)
    one = encoder(kind, tune=tune)
    before = features(one)
    x, target = one.preprocess(TEXTS), torch.randn(5, 32)
    optimizer = torch.optim.Adam([p for p in one.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (one(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.allclose(features(one), before)


def test_under_autocast_features_are_float32(encoder):
    for kind in KINDS:
        one = encoder(kind, tune="lora")
        x = one.preprocess(TEXTS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = one(x)
        assert low.dtype == torch.float32
        assert not torch.equal(low, one(x))
        torch.testing.assert_close(low, one(x), rtol=0.1, atol=0.15)


def learns_under_ddp(*models):
    """In a group of ranks: three updates of each model and what its checkpoint would hold."""
    for model in models:
        three_updates(model)


def three_updates(model):
    one = LLMEncoder(SPEC, model, tune="lora")
    x = one.preprocess((*TEXTS, "go"))
    agent = nn.parallel.DistributedDataParallel(one)
    optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
    outputs = []
    for _ in range(3):  # an unused parameter would raise in the second round
        outputs.append(agent(x))
        optimizer.zero_grad()
        outputs[-1].square().mean().backward()
        optimizer.step()
    assert not torch.allclose(outputs[0], outputs[2])
    small = ("lora_", "_extra_state", "moments")
    assert all(any(part in k for part in small) for k in agent.state_dict())


def test_under_ddp(tiny, tmp_path):
    run_alone(__file__, "learns_under_ddp", tmp_path, *map(str, tiny.values()))


# --- standardisation -----------------------------------------------------------------------------


def test_frozen_features_are_standardised_by_all_that_was_observed(encoder):
    one, raw = encoder(), features(encoder(standardize=False))
    torch.testing.assert_close(features(one), raw)  # nothing seen yet
    one.observe(TEXTS[:2])
    one.observe(TEXTS[2:])
    expected = (raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-8).sqrt()
    torch.testing.assert_close(features(one), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_tuned_features_are_standardised_by_the_first_rollout(encoder, tune):
    """They change between rollouts only, and once: updates alone move them afterwards."""
    one = encoder(tune=tune)
    raw = features(encoder(tune=tune, standardize=False))
    one.begin_rollout()
    one.observe(TEXTS)
    one.synchronize()
    torch.testing.assert_close(features(one), raw)
    # A checkpoint between the rollouts knows what was seen; so does one after them.
    for _ in range(2):
        other = encoder(tune=tune)
        other.load_state_dict(saved(one.state_dict()))
        for each in (one, other):
            each.begin_rollout()
            expected = (raw - raw.mean(0)) / (raw.var(0, correction=0) + 1e-8).sqrt()
            torch.testing.assert_close(features(each), expected, rtol=1e-4, atol=1e-4)
        one = other
    settled = features(one)
    one.observe(("something else entirely", "go"))
    one.begin_rollout()
    assert torch.equal(features(one), settled)


def test_lora_starts_as_the_frozen_policy_does(encoder):
    lora, frozen = encoder(tune="lora"), encoder()
    for one in (lora, frozen):
        one.begin_rollout()
        one.observe(TEXTS)
        one.begin_rollout()
    torch.testing.assert_close(features(lora), features(frozen), rtol=1e-4, atol=1e-4)


# --- knobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["frozen", "lora"])
@pytest.mark.parametrize(
    "knob",
    [
        {"pooling": "last"},
        {"pooling": "cls"},
        {"layers": 2},
        {"dtype": "bfloat16"},
        {"normalize": True},
        {"pretrained": False},
        {"standardize": False},
        {"model": "t5"},
    ],
)
def test_every_knob_changes_the_features(encoder, tune, knob):
    kwargs = dict(knob)
    kind = kwargs.pop("model", "bert")
    one, plain = encoder(kind, tune=tune, **kwargs), encoder(tune=tune)
    for each in (one, plain):
        if knob != {"normalize": True}:
            each.begin_rollout()
            each.observe(TEXTS)
            each.begin_rollout()
    changed = features(one)
    assert not torch.allclose(changed, features(plain), atol=1e-3)
    if knob == {"normalize": True}:
        torch.testing.assert_close(changed.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_max_length(encoder, tune):
    one = encoder("t5", tune=tune, max_length=4)
    with pytest.warns(UserWarning, match="cut to max_length=4"):
        cut = features(one)
    assert not torch.allclose(cut, features(encoder("t5", tune=tune)))
    with pytest.raises(ConfigurationError, match="max_length=1"):
        encoder("t5", max_length=1)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_cache_size_bounds_the_memory(encoder, tune):
    one = encoder(tune=tune, cache_size=2)
    one.preprocess(TEXTS)
    assert len(one.cache) == 2
    with pytest.raises(ConfigurationError, match="cache_size=-5"):
        encoder(tune=tune, cache_size=-5)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        encoder(tune=tune, batch_size=0)
    with pytest.raises(ConfigurationError, match="pooling='max'"):
        encoder(tune=tune, pooling="max")


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_cache_bytes_bounds_the_memory(encoder, tune):
    one = encoder(tune=tune, cache_bytes=1000)
    assert torch.equal(features(one), features(encoder(tune=tune)))
    assert 0 < len(one.cache) < 5
    assert one.cache.nbytes <= 1000
    assert encoder(tune=tune).cache.max_bytes == 1_000_000_000
    with pytest.raises(ConfigurationError, match="cache_bytes=-5"):
        encoder(tune=tune, cache_bytes=-5)


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_truncation_side(encoder, tune):
    texts = ("go to the red ball " + "far away " * 9, "far away " * 9 + "go to the red ball")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left, right, own = (
            features(encoder(tune=tune, max_length=9, truncation_side=side), texts)
            for side in ("left", "right", None)
        )
    assert torch.equal(own, right)
    assert not torch.allclose(left, right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_control_tokens_in_an_observation_are_text(encoder, kind, tune):
    control = {"bert": "[SEP]", "gpt2": "<|endoftext|>", "llama": "</s>", "t5": "</s>"}[kind]
    texts = ("go", f"go {control} now")
    text, acting = encoder(kind, tune=tune), encoder(kind, tune=tune, split_special_tokens=False)
    assert torch.equal(features(text, texts[:1]), features(acting, texts[:1]))
    assert not torch.allclose(features(text, texts)[1], features(acting, texts)[1])


def test_trust_arrives_where_the_model_is_loaded(tiny, tmp_path):
    folder = shutil.copytree(tiny["bert"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    asking = {**config, "fusion_config": {"patch_embeddings": True}}
    (folder / "config.json").write_text(json.dumps(asking))
    with pytest.raises(ConfigurationError, match="trust_remote_code: true"):
        LLMEncoder(SPEC, str(folder))
    assert LLMEncoder(SPEC, str(folder), trust_remote_code=True).out_dim == 32


def test_lora_and_checkpointing_arguments_arrive(encoder):
    one = encoder(
        tune="lora", lora_rank=2, lora_alpha=6, lora_targets=["key"], gradient_checkpointing=True
    )
    shapes = {tuple(p.shape) for p in one.parameters() if p.requires_grad}
    assert shapes == {(2, 32), (32, 2)}
    config = one.backbone.model.peft_config["default"]
    assert (config.lora_alpha, config.lora_dropout) == (6, 0.0)
    layers = [m for m in one.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(layers) == 3


# --- what it reads -------------------------------------------------------------------------------


def test_other_spaces_are_refused_with_the_way_out(tiny):
    for space in (gym.spaces.Box(0, 1, (3,)), gym.spaces.Dict(a=gym.spaces.Text(3))):
        spec = EnvSpec(space, gym.spaces.Discrete(2), "Cart-v1")
        message = r"Cart-v1 are (Box|Dict).*Describe.*MLPEncoder.*DictEncoder"
        with pytest.raises(ConfigurationError, match=message):
            LLMEncoder(spec, tiny["bert"])


def test_minigrid_missions_are_text(tiny):
    class MissionSpace(gym.Space):
        pass

    LLMEncoder(EnvSpec(MissionSpace(), gym.spaces.Discrete(2)), tiny["bert"])


def test_what_is_not_a_batch_of_texts(encoder):
    for tune in ("frozen", "lora"):
        one = encoder(tune=tune)
        with pytest.raises(TypeError, match="sequence of texts"):
            one.preprocess("go to the red ball")
        with pytest.raises(TypeError, match="got int"):
            one.preprocess((1, 2))


def test_a_vector_env_feeds_it(encoder):
    class Talking(gym.Env):
        observation_space = gym.spaces.Text(200)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return TEXTS[0], {}

        def step(self, action):
            return TEXTS[1], 0.0, False, False, {}

    envs = gym.vector.SyncVectorEnv([Talking, Talking])
    one = encoder()
    assert one.preprocess(envs.reset()[0]).shape == (2, 32)
    assert one.preprocess(envs.step(envs.action_space.sample())[0]).shape == (2, 32)


def test_deep_copy(encoder):
    one = encoder(tune="lora")
    x = one.preprocess(TEXTS)
    two = copy.deepcopy(one)
    perturb(one)
    assert not torch.allclose(one(x), two(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))
    assert torch.equal(two.preprocess(TEXTS)["input_ids"], x["input_ids"])


def test_built_by_a_config(tiny):
    from jsonargparse import ArgumentParser

    class Agent:
        def __init__(self, encoder: Callable[[EnvSpec], Encoder]):
            self.encoder = encoder(SPEC)

    parser = ArgumentParser()
    parser.add_class_arguments(Agent, "agent")
    name = "rl_lightning.encoders.text.LLMEncoder"
    args = {"model": tiny["bert"], "tune": "lora", "lora_targets": ["query"], "layers": 1}
    config = parser.parse_object({"agent": {"encoder": {"class_path": name, "init_args": args}}})
    built = parser.instantiate(config).agent.encoder
    assert len([p for p in built.parameters() if p.requires_grad]) == 2
    args["tune"] = "a bit"
    with pytest.raises(SystemExit):
        parser.parse_object({"agent": {"encoder": {"class_path": name, "init_args": args}}})


# --- the real thing ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def minilm():
    return LLMEncoder(SPEC, normalize=True)


@pytest.mark.pretrained
def test_minilm_knows_what_texts_mean(minilm):
    a, b, c = features(minilm, ("pick up the red ball", "grab the crimson sphere", "open the door"))
    assert minilm.out_dim == 384
    assert a @ b > a @ c + 0.1


@pytest.mark.pretrained
def test_minilm_batched_is_single(minilm):
    fresh = LLMEncoder(SPEC, normalize=True, cache_size=0)
    single = torch.cat([fresh.preprocess((text,)) for text in TEXTS])
    torch.testing.assert_close(minilm.preprocess(TEXTS), single, rtol=0, atol=2e-6)


@pytest.mark.pretrained
def test_minilm_checkpoint_is_a_few_bytes(minilm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = saved(minilm.state_dict())
        minilm.load_state_dict(state)
    assert list(state) == ["backbone._extra_state", "norm.running.moments"]
