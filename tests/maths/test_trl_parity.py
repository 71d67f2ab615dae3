"""Token losses and advantages against TRL's own code, on identical tokens, masks and rewards."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl_lightning.maths import token_advantages as advantages
from rl_lightning.maths import token_imitation as imitation
from rl_lightning.maths import token_losses as token

trl = pytest.importorskip("trl", reason="needs trl, which is no dependency")
if not trl.__version__.startswith("1.16."):
    pytest.skip(
        f"written for the insides of trl 1.16, not {trl.__version__}", allow_module_level=True
    )
pytest.importorskip(
    "trl.trainer.grpo_trainer", reason="needs what trl imports", exc_type=ImportError
)
GRPOTrainer, RLOOTrainer, DPOTrainer = trl.GRPOTrainer, trl.RLOOTrainer, trl.DPOTrainer

N, G, T, LONGEST = 12, 4, 9, 16


def batch(seed=0, dtype=torch.float32):
    """Log-probabilities far enough from the old ones that all clips are hit, masks with holes."""
    g = torch.Generator().manual_seed(seed)
    log_prob = -3 * torch.rand(N, T, generator=g) - 0.1
    length = torch.randint(1, T + 1, (N, 1), generator=g)
    length[0] = T
    completion = torch.arange(T) < length
    mask = completion & ((torch.rand(N, T, generator=g) < 0.8) | (torch.arange(T) == 0))
    found = {
        "log_prob": log_prob,
        "old": log_prob + 0.6 * torch.randn(N, T, generator=g),
        "reference": log_prob + 0.5 * torch.randn(N, T, generator=g),
        "advantage": torch.randn(N, generator=g),
        "reward": torch.randint(0, 3, (N,), generator=g) + torch.rand(N, generator=g),
    }
    found = {name: x.to(dtype) for name, x in found.items()}
    return SimpleNamespace(**found, completion=completion, mask=mask)


class Accelerator:
    """Of a single process."""

    num_processes, process_index, device, sync_gradients = 1, 0, torch.device("cpu"), True

    def gather(self, x):
        return x

    def reduce(self, x, reduction):
        return x


def trainer(kind, **attributes):
    """A trainer without a model: the log-probabilities are attributes of what stands for one."""
    made = kind.__new__(kind)
    arguments = {
        "delta": attributes.pop("delta", None),
        "use_bias_correction_kl": attributes.pop("use_bias_correction_kl", True),
        "steps_per_generation": attributes.pop("steps_per_generation", 1),
        "per_device_train_batch_size": N,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing_kwargs": None,
    }
    defaults = {
        "accelerator": Accelerator(),
        "args": SimpleNamespace(**arguments),
        "aux_loss_enabled": False,
        "beta": 0.0,
        "current_gradient_accumulation_steps": arguments["steps_per_generation"],
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "importance_sampling_level": "token",
        "max_completion_length": LONGEST,
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda model, *_, **__: (
            model.log_prob,
            torch.zeros(model.log_prob.shape),
            None,
        ),
    }
    for name, value in {**defaults, **attributes}.items():
        setattr(made, name, value)
    return made


def trl_gradient(made, b, rows: Any = slice(None), **inputs):
    log_prob = b.log_prob.clone().requires_grad_()
    made.model = SimpleNamespace(training=True, log_prob=log_prob[rows])
    ids = torch.zeros(N, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": b.completion.long(),
        "tool_mask": b.mask.long(),
        "advantages": b.advantage,
        "old_per_token_logps": b.old,
        "ref_per_token_logps": b.reference,
        **inputs,
    }
    inputs = {k: v[rows] for k, v in inputs.items() if v is not None}
    loss = made._compute_loss(made.model, {**inputs, "num_items_in_batch": b.mask.sum()})
    return loss.detach(), *torch.autograd.grad(loss, log_prob)


def our_gradient(b, old: Any = True, rows: Any = slice(None), **arguments: Any):
    log_prob = b.log_prob.clone().requires_grad_()
    old_log_prob = b.old[rows] if old else None
    loss, _ = token.token_policy_loss(
        log_prob[rows],
        b.advantage[rows],
        b.mask[rows],
        old_log_prob,
        b.reference[rows],
        max_completion_length=LONGEST,
        **{"clip_low": 0.2, "clip_high": 0.28, **arguments},
    )
    return loss.detach(), *torch.autograd.grad(loss, log_prob)


def compare(ours, theirs):
    """The loss, and the gradient relative to its largest entry."""
    for mine, other in zip(ours, theirs, strict=True):
        size = other.abs().max()
        assert size > 1e-4
        tolerance = 1e-5 if mine.dtype == torch.float32 else 1e-12
        assert ((mine - other).abs().max() / size).item() < tolerance


TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]


def bounds(loss_type):
    """TRL's cispo bounds the ratio itself, and from above alone."""
    if loss_type == "cispo":
        return {"epsilon_high": 1.5}, {"clip_low": 1.0, "clip_high": 0.5}
    return {}, {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", TYPES)
def test_loss_and_gradient_are_those_of_trl(loss_type, level, kl_coef, old, dtype):
    b = batch(dtype=dtype)
    theirs, ours = bounds(loss_type)
    made = trainer(
        GRPOTrainer, loss_type=loss_type, importance_sampling_level=level, beta=kl_coef, **theirs
    )
    compare(
        our_gradient(b, old, loss_type=loss_type, importance=level, kl_coef=kl_coef, **ours),
        trl_gradient(made, b, **({} if old else {"old_per_token_logps": None})),
    )


@pytest.mark.parametrize("old", [True, False], ids=["off-policy", "on-policy"])
def test_the_uncorrected_kl_is_that_of_trl(old):
    b = batch(1)
    made = trainer(GRPOTrainer, loss_type="grpo", beta=0.3, use_bias_correction_kl=False)
    compare(
        our_gradient(b, old, loss_type="grpo", kl_coef=0.3, kl_correction=False),
        trl_gradient(made, b, **({} if old else {"old_per_token_logps": None})),
    )


def test_the_dual_clip_is_the_delta_of_trl():
    b = batch(2)
    made = trainer(GRPOTrainer, loss_type="grpo", delta=1.5)
    ours = our_gradient(b, loss_type="grpo", dual_clip=1.5)
    compare(ours, trl_gradient(made, b))
    assert not torch.equal(ours[1], our_gradient(b, loss_type="grpo")[1])


@pytest.mark.parametrize("loss_type", TYPES)
def test_accumulated_gradients_are_those_of_trl(loss_type):
    """Two pieces; TRL takes the mean of their bnpo losses, which have own normalizers."""
    b = batch(3)
    theirs, ours = bounds(loss_type)
    made = trainer(GRPOTrainer, loss_type=loss_type, steps_per_generation=2, **theirs)
    whole = token.loss_normalizer(b.mask, loss_type, LONGEST)
    total = [torch.zeros(()), torch.zeros(())], [torch.zeros(N, T), torch.zeros(N, T)]
    for rows in (slice(0, N // 2), slice(N // 2, N)):
        piece = token.loss_normalizer(b.mask[rows], loss_type, LONGEST)
        normalizer = 2 * piece if loss_type == "bnpo" else whole
        mine = our_gradient(b, rows=rows, loss_type=loss_type, normalizer=normalizer, **ours)
        other = trl_gradient(made, b, rows)
        for kind in (0, 1):
            total[kind][0] += mine[kind]
            total[kind][1] += other[kind]
    compare((total[0][0], total[1][0]), (total[0][1], total[1][1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_rloo_is_that_of_trl(dtype):
    b = batch(4, dtype)
    b.mask = b.completion
    b.old = b.log_prob + 0.3 * (b.old - b.log_prob)
    old_logps = token.sequence_log_prob(b.old, b.mask)
    compare(
        our_gradient(b, loss_type="grpo", importance="trajectory"),
        trl_gradient(trainer(RLOOTrainer), b, old_logps=old_logps),
    )


def scored(kind, b, **attributes):
    """TRL's advantages of completions that are given, as are their rewards."""
    made = trainer(
        kind,
        model=SimpleNamespace(training=True, log_prob=b.old, is_gradient_checkpointing=False),
        ref_model=SimpleNamespace(log_prob=b.reference),
        num_generations=G,
        reward_weights=torch.ones(1),
        reward_funcs=[None],
        reward_func_names=["reward"],
        reward_clip_range=None,
        normalize_advantages=False,
        multi_objective_aggregation="sum_then_normalize",
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        num_iterations=2,
        tools=None,
        environments=None,
        environment_factories=None,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        _calculate_rewards=lambda *_: b.reward[:, None],
        **attributes,
    )
    ids = [[1] * n for n in b.completion.sum(1).tolist()]
    parts = [[1]] * N, ids, [""] * N
    if kind is GRPOTrainer:
        parts = [[1]] * N, ids, None, [""] * N, None, {}, None, None
    made._generate = lambda prompts: parts
    return made._generate_and_score_completions([{"prompt": ""}] * N)["advantages"]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_those_of_trl(scale):
    b = batch(5)
    b.reward[:G] = 0.3
    expected = scored(GRPOTrainer, b, scale_rewards=scale)
    torch.testing.assert_close(
        advantages.group_advantages(b.reward, G, scale), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_rloo_advantages_are_those_of_trl(kl_coef):
    b = batch(6)
    reward = advantages.token_rewards(b.reward, b.completion, b.old, b.reference, kl_coef).sum(1)
    expected = scored(RLOOTrainer, b, beta=kl_coef)
    torch.testing.assert_close(
        advantages.rloo_advantages(reward, G), expected, rtol=1e-5, atol=1e-6
    )


def test_the_overlong_penalty_is_that_of_trl():
    lengths = range(1, 30)
    rewards = pytest.importorskip("trl.rewards")
    expected = rewards.get_soft_overlong_punishment(20, 8)([[0] * n for n in lengths])
    ours = advantages.overlong_penalty(torch.tensor(list(lengths)), 20, 8)
    torch.testing.assert_close(ours, torch.tensor(expected))


def test_the_dpo_loss_is_that_of_trl():
    g = torch.Generator().manual_seed(7)
    half = N // 2
    logps = (-3 * torch.rand(N, T, generator=g)).requires_grad_()
    reference = logps.detach() + torch.randn(N, T, generator=g)

    class Model(SimpleNamespace):
        def __call__(self, **_):
            zero = torch.zeros(N, T)
            return SimpleNamespace(
                log_probs=self.log_prob, entropy=zero, mean_logits=zero, is_top1=zero > 0
            )

    accelerator = Accelerator()
    accelerator.gather_for_metrics = accelerator.gather  # type: ignore[attr-defined]
    made = trainer(
        DPOTrainer,
        accelerator=accelerator,
        model=Model(log_prob=logps, training=True),
        beta=0.2,
        label_smoothing=0.0,
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference.sum(1).chunk(2)
    ids = torch.ones(N, T + 1, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": ids}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    theirs = made._compute_loss(made.model, inputs, return_outputs=False)
    sums = token.sequence_log_prob(logps, torch.ones(N, T, dtype=torch.bool))
    ours, metrics = imitation.dpo_loss(sums[:half], sums[half:], chosen, rejected, beta=0.2)
    compare(
        (ours.detach(), *torch.autograd.grad(ours, logps, retain_graph=True)),
        (theirs.detach(), *torch.autograd.grad(theirs, logps)),
    )
    logged = made._metrics["train"]
    assert metrics.margin.item() == pytest.approx(logged["rewards/margins"][0], rel=1e-5)
    assert metrics.accuracy.item() == pytest.approx(logged["rewards/accuracies"][0])
