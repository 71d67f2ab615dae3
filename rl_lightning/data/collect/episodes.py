"""Episodes of several turns, written by a language model and answered by environments.

A completion is all that stands behind what an environment says first: the model's own tokens, and
those of the environment's answers in between. Tokens stay what they were when they were written or
read: nothing is decoded and cut into tokens again.

Shapes: P seeds of a batch, G episodes of each, T tokens of a completion.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.data.collect.completions import Completed, repeated
from rl_lightning.data.collect.conversation import Conversation, Conversations
from rl_lightning.data.prompts.asked import Asked
from rl_lightning.data.prompts.turns import TurnTokens
from rl_lightning.envs.failures import name
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import Generator, remembering
from rl_lightning.llm.sampling import Sampling
from rl_lightning.rewards.completions import CompletionJudge

OURS = ("env", "illegal")
"""Names of the rewards that come of playing."""


@dataclass(frozen=True)
class Rules:
    """How long episodes may be, and what they are worth.

    Args:
        max_turns: Turns after which an episode is cut.
        max_length: Tokens of prompt and completion together; an episode is cut where a whole turn
            has no room any more.
        env_reward_weight: Weight of what the environment pays.
        illegal_reward: What an illegal turn is paid.
    """

    max_turns: int
    max_length: int
    env_reward_weight: float = 1.0
    illegal_reward: float = 0.0


class _Episode:
    """One episode, as far as it has been played."""

    def __init__(self, conversation: Conversation, seed: int, words: TurnTokens) -> None:
        self.conversation, self.words, self.seed = conversation, words, seed
        self.text, self.prompt = words.begin(conversation.reset(seed))
        self.ids: list[int] = []
        self.own: list[bool] = []
        self.said: list[float] = []
        self.paid: list[float] = []
        self.turns: list[dict[str, Any]] = []
        self.total = self.penalty = 0.0
        self.success = float("nan")
        self.over = self.ended = False

    def take(self, ids: list[int], said: list[float], rules: Rules, most: int) -> None:
        """Go on by a turn that the model wrote: tell the environment, and hear what it answers."""
        tokenizer = self.words.tokens.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=True)
        answer = self.conversation.say(text)
        penalty = rules.illegal_reward if answer.illegal else 0.0
        self.total += answer.reward
        self.penalty += penalty
        paid = rules.env_reward_weight * answer.reward + penalty
        self.extend(ids, True, said, [0.0] * (len(ids) - 1) + [paid])
        self.turns.append(
            {
                "wrote": text,
                "action": _plain(answer.action),
                "illegal": answer.illegal,
                "reward": answer.reward,
                "observation": dict(answer.values),
            }
        )
        if answer.over:
            self.over = self.ended = True
            self.success = answer.success
            return
        reply = self.words.answer(answer.values, ids[-1])
        room = rules.max_length - most - len(self.prompt) - len(self.ids)
        if len(self.turns) == rules.max_turns or len(reply) > room:
            self.over = True
            return
        self.extend(reply, False, [0.0] * len(reply), [0.0] * len(reply))

    def extend(self, ids: list[int], own: bool, said: list[float], paid: list[float]) -> None:
        self.ids += ids
        self.own += [own] * len(ids)
        self.said += said
        self.paid += paid


def play(
    backbone: Backbone,
    generator: Generator,
    conversations: Conversations,
    words: TurnTokens,
    seeds: Sequence[int],
    samples: int,
    sampling: Sampling,
    rules: Rules,
    judge: CompletionJudge | None,
    version: int,
) -> Completed:
    """Play G episodes of each seed, all of them side by side, and judge them.

    Beside what agents learn from, the batch has `token_reward`, float32 `[P, G, T]`: what a turn
    was paid, at its last own token, and there at the end what the judge pays for the whole. Its sum
    is `reward`.

    Args:
        backbone: The language model.
        generator: Writes with it.
        conversations: Environments.
        words: Makes tokens of what they say.
        seeds: What environments are reset with, P.
        samples: G.
        sampling: How the tokens of a turn are chosen, and how many there are at most.
        rules: How long episodes may be, and what they are worth.
        judge: Says what whole conversations are worth; None: nobody does.
        version: Updates that the model has had.

    Raises:
        RunError: If episodes of one seed begin differently, an environment fails, or rewards add up
            to more than float32 holds.
        ConfigurationError: If what it says first leaves no room for a turn.
    """
    began = time.perf_counter()
    most = sampling.max_new_tokens
    copies = conversations.take(len(seeds) * samples)
    episodes = [
        _Episode(one, seed, words)
        for one, seed in zip(copies, repeated(seeds, samples), strict=True)
    ]
    firsts = episodes[::samples]
    for n, one in enumerate(episodes):
        _check_start(one, firsts[n // samples], rules.max_length - most)
    # Those of one seed begin alike: what was said first is read once.
    with remembering(generator):
        written = generator(backbone, [one.prompt for one in firsts], samples, sampling, version)
        playing = episodes
        while True:
            columns = written.ids.tolist(), written.length.tolist(), written.log_prob.tolist()
            for one, ids, length, said in zip(playing, *columns, strict=True):
                one.take(ids[:length], said[:length], rules, most)
            playing = [one for one in playing if not one.over]
            if not playing:
                break
            asked = [[*one.prompt, *one.ids] for one in playing]
            written = generator(backbone, asked, 1, sampling, version)
    wrote = time.perf_counter()
    rewards, parts = _judged(backbone, episodes, rules, judge)
    shape = len(seeds), samples
    device = next(backbone.parameters()).device
    batch = _batch(backbone, episodes, shape, rewards)
    if not bool((finite := batch["reward"].flatten().isfinite()).all()):
        one = episodes[int(finite.int().argmin())]
        raise RunError(
            f"environment {name(one.conversation.env)}: what an episode (seed {one.seed}) is paid "
            "adds up to more than float32 holds; give smaller data.env_reward_weight, "
            "data.illegal_reward or weights of data.rewards"
        )
    batch["temperature"] = torch.full(shape[:1], float(sampling.temperature))
    batch["most"] = torch.full(shape[:1], min(rules.max_turns * most, rules.max_length))
    told = {
        "return": [one.total for one in episodes],
        "turns": [float(len(one.turns)) for one in episodes],
        "illegal": [_mean([turn["illegal"] for turn in one.turns]) for one in episodes],
        "success": [one.success for one in episodes],
    }
    return Completed(
        Asked([one.prompt for one in firsts], [one.text for one in firsts], {"seed": [*seeds]}),
        _texts(backbone, episodes),
        batch.to(device),
        torch.tensor([one.ended for one in episodes]).view(shape),
        {key: values.view(shape) for key, values in parts.items()},
        (wrote - began, time.perf_counter() - wrote),
        sum(sum(one.own) for one in episodes),
        {key: torch.tensor(values).view(shape) for key, values in told.items()},
        [{"seed": one.seed, "turns": one.turns} for one in episodes],
    )


def _check_start(one: _Episode, first: _Episode, room: int) -> None:
    env = name(one.conversation.env)
    if one.prompt != first.prompt:
        raise RunError(
            f"environment {env} begins differently after reset(seed={one.seed}): first it said "
            f"{shortened(repr(first.text), 80)}, then {shortened(repr(one.text), 80)}. Episodes of "
            "a group begin alike, so an episode must depend on nothing but its seed"
        )
    if not 0 < len(one.prompt) <= room:
        raise ConfigurationError(
            f"environment {env} says {len(one.prompt)} tokens first (seed {one.seed}), and there "
            f"is room for {room} in front of a turn: shorten data.template, lower "
            "data.max_new_tokens or raise model.max_length"
        )


def _texts(backbone: Backbone, episodes: Sequence[_Episode]) -> list[str]:
    rows = [one.ids for one in episodes]
    return backbone.tokens.tokenizer.batch_decode(rows, skip_special_tokens=True)


def _judged(
    backbone: Backbone, episodes: Sequence[_Episode], rules: Rules, judge: CompletionJudge | None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """What the judge pays, `[N]`, and all rewards by name, `[N]` each."""
    parts = {"env": torch.tensor([one.total for one in episodes])}
    if rules.illegal_reward:
        parts["illegal"] = torch.tensor([one.penalty for one in episodes])
    if judge is None:
        return None, parts
    own = [[i for i, mine in zip(one.ids, one.own, strict=True) if mine] for one in episodes]
    judged = judge.judge(
        [one.text for one in episodes],
        _texts(backbone, episodes),
        own,
        [one.ended for one in episodes],
        {"seed": [one.seed for one in episodes], "turns": [one.turns for one in episodes]},
    )
    return judged.total, {**parts, **judged.parts}


def _batch(
    backbone: Backbone,
    episodes: Sequence[_Episode],
    shape: tuple[int, int],
    judged: Tensor | None,
) -> TensorDict:
    prompt, begins = backbone.tokens.pad([one.prompt for one in episodes[:: shape[1]]])
    ids, there = backbone.tokens.pad([one.ids for one in episodes])
    own = torch.zeros(ids.shape, dtype=torch.bool)
    said, paid = torch.zeros(ids.shape), torch.zeros(ids.shape)
    for n, one in enumerate(episodes):
        count = len(one.ids)
        own[n, :count] = torch.tensor(one.own)
        said[n, :count] = torch.tensor(one.said)
        paid[n, :count] = torch.tensor(one.paid)
        if judged is not None:
            paid[n, count - 1] += judged[n]  # where the model had the last word
    return TensorDict(
        {
            "prompt": prompt.int(),
            "prompt_length": begins.sum(1),
            "ids": ids.int().view(*shape, -1),
            "length": there.sum(1).view(shape),
            "own": own.view(*shape, -1),
            "said": said.view(*shape, -1),
            "reward": paid.sum(1).view(shape),
            "token_reward": paid.view(*shape, -1),
        },
        batch_size=shape[:1],
    )


def _plain(action: Any) -> Any:
    return int(action) if isinstance(action, int) else action


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)
