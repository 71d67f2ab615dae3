r"""Make a small language model that knows the words of an environment, and no others.

    python examples/small_language_model.py configs/ppo/textmaze.yaml \
        --out checkpoints/models/textmaze

A byte-level vocabulary is made of what a random policy sees, and a Llama of a few layers learns to
go on with that text: prompts, and the names of those actions after which the text was another one.
So it learns what can be done where, of which walls and doors are the reason, and nothing of what
pays. The folder is an ordinary model: `model: checkpoints/models/textmaze` in a configuration loads
it, as `AutoModelForCausalLM.from_pretrained` does.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml
from tqdm import tqdm

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs import make_env
from rl_lightning.envs.describe.actions import names_of
from rl_lightning.llm.prompt import Template


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="its environment and template are used")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--frames", type=int, default=20_000, help="steps of the random policy")
    parser.add_argument("--window", type=int, default=1, help="steps in a text that is learned")
    parser.add_argument("--prompts-only", action="store_true", help="leave the actions out")
    parser.add_argument("--retold", action="store_true", help="learn to look up things by name")
    parser.add_argument("--vocabulary", type=int, default=512, help="most tokens")
    parser.add_argument("--phrases", action="store_true", help="tokens may be of several words")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500, help="of training; 0: random weights")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    if not args.config.is_file():
        parser.error(f"no such file: {args.config}")
    if args.out.exists():
        parser.error(f"{args.out} is there already, and checkpoints may need it: take another name")
    config = yaml.safe_load(args.config.read_text())
    try:
        texts = play(config, args.frames, args.window, args.seed, not args.prompts_only)
    except ConfigurationError as error:
        parser.error(str(error))
    things = things_told(texts) if args.retold else []
    if args.retold and not things:
        parser.error("--retold: texts name nothing, in parts between commas, before a colon")
    told = [retold(text, things) for text in texts] if things else texts
    tokenizer = make_tokenizer(told, args.vocabulary, args.phrases)
    model = make_model(len(tokenizer), args.layers, args.hidden, args.heads)
    loss = train(model, tokenizer, texts, things, args)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size:,} parameters, {len(tokenizer)} tokens, {loss:.3f} nats a token")


def play(
    config: dict[str, Any], frames: int, window: int, seed: int, with_actions: bool = True
) -> list[str]:
    """Prompts, and behind each the action that a uniformly random policy chose, if it changed what
    there is to read; or prompts alone. `window` of them make a text, and are of one episode."""
    data = config["data"]["init_args"]
    agent = config["model"]["init_args"]
    encoder = agent.get("encoder")
    encoder = encoder.get("init_args", {}) if isinstance(encoder, dict) else {}
    env = make_env(data["env"], data.get("env_kwargs"), data.get("wrappers") or ())
    space = env.observation_space
    fields = list(space.spaces) if isinstance(space, gym.spaces.Dict) else ["observation"]
    template = Template(
        encoder.get("template") or data.get("template"), [*fields, *({"actions"} - set(fields))]
    )
    if not isinstance(env.action_space, gym.spaces.Discrete):
        raise ConfigurationError(f"actions of {data['env']} have no numbers: {env.action_space}")
    names = encoder.get("actions") or data.get("actions") or names_of(env, data["env"])
    if names is None and "actions" not in fields:
        raise ConfigurationError(f"nobody says what actions of {data['env']} are called")
    texts: list[str] = []
    lines: list[str] = []
    obs, _ = env.reset(seed=seed)
    for step in tqdm(range(frames), desc="playing", unit="step"):
        values = dict(obs) if isinstance(obs, dict) else {"observation": obs}
        allowed = values["actions"].split("\n") if "actions" in values else list(names or ())
        values["actions"] = ", ".join(allowed)
        action = random.randrange(len(allowed))
        before, text = obs, template(values)
        if with_actions:
            text += f" {allowed[action].strip()}"
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated or obs != before:
            lines.append(text)
        if len(lines) == window or terminated or truncated:
            texts += ["\n".join(lines)] if lines else []
            lines = []
        if terminated or truncated:
            obs, _ = env.reset(seed=seed + step + 1)
    env.close()
    return texts


def retold(text: str, things: list[str]) -> str:
    """A text, and behind it what it says of things, asked by their names, some of them in the words
    of its last part: so a model learns to look up what it was told.

    Texts are parts between commas, such as "wall: left 2, red ball: forward 3, mission: go to the
    red ball": a thing stands before a part's colon, and the last part ends in one.

    Args:
        text: It is asked of up to six things that it names, and of three others, most of which are
            "unseen".
        things: All that texts name.
    """
    *parts, question = text.rstrip(":").split(", ")
    said = dict(part.split(": ", 1) for part in reversed(parts) if ": " in part)
    ends = [thing for thing in things if question.endswith(f" {thing}")]
    frame = question.removesuffix(max(ends, key=len)) if ends else ""
    asked = random.sample(sorted(said), min(len(said), 6))
    asked += random.sample(things, min(len(things), 3))
    random.shuffle(asked)
    framed = (f"{frame if random.random() < 0.3 else ''}{thing}" for thing in asked)
    answers = (said.get(thing, "unseen") for thing in asked)
    return f"{text}\n" + ", ".join(f"{q}: {a}" for q, a in zip(framed, answers, strict=True))


def things_told(texts: list[str]) -> list[str]:
    """What stands before a colon, in texts of parts between commas."""
    parts = {part for text in texts for part in text.rstrip(":").split(", ")[:-1]}
    return sorted({part.split(": ")[0] for part in parts if ": " in part})


def make_tokenizer(texts: list[str], size: int, phrases: bool = False) -> Any:
    """A byte-level BPE vocabulary of these texts.

    Args:
        texts: It is made of.
        size: Most tokens.
        phrases: Tokens end at punctuation marks instead of at words, so that "You see a" may be
            one: texts of few sentences become several times shorter, and as much faster to read.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not phrases)
    marks = pre_tokenizers.Split(Regex(r"[.,:;!?\n]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([marks, to_bytes]) if phrases else to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def make_model(vocabulary: int, layers: int, hidden: int, heads: int, positions: int = 2048) -> Any:
    """A Llama with random weights, whose texts begin with token 0 and end with token 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=positions,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
        )
    )


def train(
    model: Any, tokenizer: Any, texts: list[str], things: list[str], args: argparse.Namespace
) -> float:
    """Next-token prediction; where there are `things`, of the answers to what is asked of them,
    each time anew. The mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=max(args.steps, 2)
    )
    losses = []
    for _ in tqdm(range(args.steps), desc="training", unit="step"):
        drawn = random.sample(texts, args.batch)
        ids = tokenizer([retold(text, things) if things else text for text in drawn])["input_ids"]
        width = max(map(len, ids))
        tokens = torch.tensor([row + [1] * (width - len(row)) for row in ids])
        there = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        labels = tokens.masked_fill(there == 0, -100)
        if things:
            for row, text in zip(labels, drawn, strict=True):
                row[: len(tokenizer(text)["input_ids"])] = -100
        loss = model(input_ids=tokens, attention_mask=there, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last) if last else float("nan")


if __name__ == "__main__":
    main()
