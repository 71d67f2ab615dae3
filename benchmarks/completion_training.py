"""GRPO from end to end: completions of prompts learned from per second, against TRL's.

    pip install trl
    python benchmarks/completion_training.py --out benchmarks/results/speed/completion_training.json
    python benchmarks/completion_training.py --pairs 1 --shapes 10x256x4 200x256x3

The same weights, prompts, reward, batch, seed and hyper-parameters: float32, no checkpointing,
every completion exactly as long, two passes of one update each, GRPO with the `dapo` loss. TRL
writes with its `transformers` path. One process each, one thread, in turn; the first step of each
is not counted. They learn to write words from the first half of the vocabulary.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import compare, prepare_process
from learning import versions

VOCABULARY = 8_000
LR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["10x32x20", "200x32x6"],
                        help="tokens of a prompt x of a completion x steps of a run")  # fmt: skip
    parser.add_argument("--pairs", type=int, default=3, help="of runs; their seeds are 1, 2 …")
    parser.add_argument("--prompts", type=int, default=4, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args.hidden, args.layers)
        settings: dict[str, tuple[object, ...]] = {}
        for shape in args.shapes:
            prompt, new, steps = map(int, shape.split("x"))
            name = f"prompt {prompt}, {args.prompts} × {args.group} × {new} new"
            settings[name] = folder, prompt, new, args.prompts, args.group, steps

        def keep(rows: dict[str, dict[str, Any]]) -> None:
            if args.out:
                kept = {k: v for k, v in vars(args).items() if k not in ("out", "shapes", "pairs")}
                known = json.loads(args.out.read_text()) if args.out.exists() else {}
                if known.get("arguments", kept) != kept:
                    raise SystemExit(f"{args.out} was measured otherwise: give another name")
                rows = {**known.get("settings", {}), **rows}
                found = {"arguments": kept, "versions": versions("trl"), "settings": rows}
                args.out.write_text(json.dumps(found, indent=1) + "\n")

        rows = compare(__file__, settings, args.pairs, keep, against="trl")
    print(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| prompt, prompts × completions × tokens | × TRL | completions/s | TRL's | generating | "
        "judging | learning | reward | TRL's |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        shares = [p["rl_lightning"]["shares"] for p in row["pairs"]]
        split = [f"{100 * statistics.median(s[part] for s in shares):.0f} %" for part in shares[0]]
        ratio = f"{row['ratio']:.2f}"
        if len(row["pairs"]) > 1:
            ratio += f" ({row['ratio_min']:.2f} … {row['ratio_max']:.2f})"
        cells = [
            name.removeprefix("prompt ").removesuffix(" new"),
            ratio,
            f"{row['ours']:.1f}",
            f"{row['theirs']:.1f}",
            *split,
            f"{row['return']:.3f} ± {row['return_std']:.3f}",
            f"{row['their_return']:.3f} ± {row['their_return_std']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def make_model(folder: Path, hidden: int, layers: int) -> None:
    """A Llama of random weights whose tokens are words; `ours` knows no end, so that completions
    are as long as TRL is told to write."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 2,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=1_024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    words = {"<pad>": 0, "</s>": 1} | {f"w{i}": i + 2 for i in range(VOCABULARY)}
    cut = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    cut.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, ends in {"ours": {}, "theirs": {"eos_token": "</s>"}}.items():
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=cut, pad_token="<pad>", **ends).save_pretrained(
            folder / name
        )


def make_prompts(length: int, count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(VOCABULARY)}" for _ in range(length)) for _ in range(count)]


def low_words(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """The share of words from the first half of the vocabulary."""
    out = []
    for text in completions:
        words = [word for word in text.split() if word[0] == "w"]
        out.append(sum(int(word[1:]) < VOCABULARY // 2 for word in words) / max(len(words), 1))
    return out


def run(library: str, folder: str, *numbers: str) -> dict[str, Any]:
    """One run; `fps` are completions per second."""
    prepare_process()
    prompt, new, prompts, group, steps, seed = map(int, numbers)
    train = ours if library == "rl_lightning" else theirs
    rewards: list[float] = []

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        # Padding, which a random model may write, is no text.
        if any(len(text.split()) < 0.9 * new for text in completions):
            raise AssertionError("a completion is shorter than others")
        found = low_words(prompts, completions)
        rewards.append(statistics.mean(found))
        return found

    texts = make_prompts(prompt, 64)
    marks, more = train(folder, texts, reward, new, prompts, group, steps, seed)
    (began, cpu), (ended, cpu_end) = marks[0], marks[-1]
    assert len(rewards) == steps, "another number of steps"
    return {
        "fps": (steps - 1) * prompts * group / (ended - began),
        "cpu": cpu_end - cpu,
        "return": statistics.mean(rewards[-3:]),
        "curve": [round(value, 4) for value in rewards],
        **more,
    }


def ours(
    folder: str, texts: list[str], reward: Any, new: int, prompts: int, group: int, steps: int,
    seed: int,
) -> tuple[list[tuple[float, float]], dict[str, Any]]:  # fmt: skip
    """Times after the first step and after the last, and where the time went."""
    from functools import partial

    import lightning as L
    import torch
    from common import quiet_trainer

    from rl_lightning import GRPO, PromptDataModule

    L.seed_everything(seed, verbose=False)
    data = PromptDataModule(
        texts,
        val_share=0.0,
        rewards=[reward],
        max_new_tokens=new,
        prompts_per_step=prompts,
        group_size=group,
        passes=2,
        steps_per_epoch=steps,
        total_prompts=prompts * steps,
        seed=seed,
    )
    agent = GRPO(
        data.spec,
        f"{folder}/ours",
        tune="full",
        loss_type="dapo",
        max_grad_norm=1.0,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=0.0, fused=True),
    )
    marks: list[tuple[float, float]] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if agent.updates >= 2:
                marks.append((time.perf_counter(), time.process_time()))

    trainer = quiet_trainer(callbacks=[Watch()])
    trainer.fit(agent, data)
    assert agent.updates == 2 * steps
    told = data.metrics()
    parts = ("generating", "judging", "learning")
    return marks, {"shares": {part: round(told[f"time/share_{part}"], 3) for part in parts}}


def theirs(
    folder: str, texts: list[str], reward: Any, new: int, prompts: int, group: int, steps: int,
    seed: int,
) -> tuple[list[tuple[float, float]], dict[str, Any]]:  # fmt: skip
    """As `ours`, of TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    marks: list[tuple[float, float]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= 2:
                marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=prompts * group,
            num_generations=group,
            num_iterations=2,
            max_steps=2 * steps,
            max_completion_length=new,
            generation_kwargs={"min_new_tokens": new},
            temperature=1.0,
            beta=0.0,
            loss_type="dapo",
            epsilon=0.2,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=seed,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(f"{folder}/theirs"),
            processing_class=AutoTokenizer.from_pretrained(f"{folder}/theirs"),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            callbacks=[Watch()],
        )
        trainer.train()
    return marks, {}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(run(*sys.argv[2:])))
    else:
        main()
