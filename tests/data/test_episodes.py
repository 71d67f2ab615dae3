"""Episodes of several turns: what is in a batch of them, token by token."""

import pytest
import torch
from talking import Copying, Masked, Unseeded, failing
from token_tools import characters

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.data.collect.conversation import Conversation, Conversations
from rl_lightning.data.collect.episodes import Rules, play
from rl_lightning.data.prompts.turns import TurnTokens
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generators import Generated, TransformersGenerator
from rl_lightning.llm.reading import read_completions
from rl_lightning.llm.sampling import Sampling
from rl_lightning.rewards.completions import CompletionJudge


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    model = characters(tmp_path_factory.mktemp("model") / "characters", positions=128)
    return Backbone(model, tune="full", head=True, max_length=16)


def scripted(backbone, *turns):
    """Writes what it is told to: of each turn a text, or one for each row."""
    left = list(turns)

    def write(backbone_, prompts, samples, sampling, version):
        rows = len(prompts) * samples
        texts = left.pop(0)
        ids = [
            backbone.tokens.plain(t) for t in ([texts] * rows if isinstance(texts, str) else texts)
        ]
        assert len(ids) == rows
        write.asked.append([list(prompt) for prompt in prompts])
        padded, mask = backbone.tokens.pad(ids, sampling.max_new_tokens)
        return Generated(padded, mask.sum(1), -0.5 * mask.float(), mask.any(1))

    write.asked = []
    return write


def started(backbone, make, generator=None, seeds=(3,), samples=1, most=2, judge=None, **rules):
    known = {"actions": ["a", "b"], "answer": None, "on_illegal": "penalize"}
    told = {name: rules.pop(name) for name in list(rules) if name in known}
    sampling = Sampling(most, rules.pop("temperature", 1.0))
    conversations = Conversations(lambda: Conversation(make(), **{**known, **told}))
    fields = conversations.take(1)[0].fields
    words = TurnTokens(
        backbone.tokens, fields, "{observation}:", rules.pop("turn", "\n{observation}=")
    )
    limits = Rules(**{"max_turns": 8, "max_length": 128, "illegal_reward": -0.25, **rules})
    generator = TransformersGenerator() if generator is None else generator
    found = play(
        backbone, generator, conversations, words, seeds, samples, sampling, limits, judge, 0
    )
    return found, conversations.take(len(seeds) * samples)


def spelled(backbone, ids):
    return "".join(backbone.tokens.tokenizer.convert_ids_to_tokens(list(map(int, ids))))


def letters(seed, turns):
    """What an environment says, and what is right."""
    env = Copying(turns)
    said = [env.reset(seed=seed)[0]]
    return said + [env.step(0)[0] for _ in range(turns)]


def test_a_row_is_what_was_written_and_what_was_answered(backbone):
    said = letters(3, 2)
    right, wrong = said[0], "ab"[said[1] == "a"]
    found, _ = started(backbone, Copying, scripted(backbone, right + "\n", [wrong + "\n"]))
    batch = found.batch
    assert spelled(backbone, batch["prompt"][0]) == f"<s>{said[0]}:"
    assert spelled(backbone, batch["ids"][0, 0]) == f"{right}\n\n{said[1]}={wrong}\n"
    assert batch["own"][0, 0].tolist() == [True, True, False, False, False, True, True]
    assert batch["said"][0, 0].tolist() == [-0.5, -0.5, 0, 0, 0, -0.5, -0.5]
    assert batch["token_reward"][0, 0].tolist() == [0, 1.0, 0, 0, 0, 0, 0]
    assert batch["reward"].tolist() == [[1.0]]
    assert batch["length"].tolist() == [[7]]
    assert found.told["turns"].tolist() == [[2.0]]
    assert found.told["success"].tolist() == [[0.0]]
    assert found.ended.all()
    assert found.tokens == 4
    assert found.texts == [f"{right}\n\n{said[1]}={wrong}\n"]
    turns = found.lines[0]["turns"]
    assert [turn["wrote"] for turn in turns] == [right + "\n", wrong + "\n"]
    assert [turn["reward"] for turn in turns] == [1.0, 0.0]


def test_the_model_reads_all_that_was_said_as_it_was_said(backbone):
    write = scripted(backbone, "ab", "ba", "a")
    found, _ = started(backbone, lambda: Copying(3), write)
    whole = found.batch["prompt"][0].tolist() + found.batch["ids"][0, 0].tolist()
    for (asked,) in write.asked:
        assert asked == whole[: len(asked)]
    assert [len(asked[0]) for asked in write.asked] == [3, 8, 13]


def test_a_group_begins_alike(backbone):
    found, envs = started(backbone, Copying, seeds=(5, 6, 7), samples=4, most=1)
    assert [env.env.seed_given for env in envs] == [5] * 4 + [6] * 4 + [7] * 4
    assert found.batch["ids"].shape[:2] == (3, 4)
    assert [line["seed"] for line in found.lines] == [5] * 4 + [6] * 4 + [7] * 4
    assert [spelled(backbone, row)[3] for row in found.batch["prompt"]] == [
        letters(seed, 1)[0] for seed in (5, 6, 7)
    ]


def test_who_does_not_begin_alike_is_found_out(backbone):
    Unseeded.begun = 0
    with pytest.raises(RunError, match=r"begins differently after reset\(seed=3\)"):
        started(backbone, Unseeded, samples=8)


def test_ends_at_different_turns_are_padded(backbone):
    found, _ = started(
        backbone, lambda: Copying(ragged=True), seeds=tuple(range(16)), samples=2, most=1
    )
    batch, turns = found.batch, found.told["turns"]
    assert set(turns.flatten().tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert turns[:, 0].equal(turns[:, 1])
    assert batch["length"].equal((4 * turns - 3).long())  # a token a turn, three in between
    there = torch.arange(batch["ids"].shape[2]) < batch["length"][..., None]
    assert batch["own"].sum(-1).equal(turns.long())
    for name in ("own", "said", "token_reward"):
        assert not batch[name][~there].any()
    assert batch["ids"][~there].eq(backbone.tokens.pad_id).all()
    torch.testing.assert_close(batch["token_reward"].sum(-1), batch["reward"])
    last = batch["own"].gather(2, batch["length"][..., None] - 1)
    assert last.all()  # the model has the last word


def test_an_environment_s_tokens_have_no_probability_and_no_gradient(backbone):
    found, _ = started(backbone, lambda: Copying(3), seeds=(1, 2), samples=3, most=2)
    batch = found.batch
    args = [batch[k] for k in ("prompt", "prompt_length", "ids", "length", "own", "temperature")]
    read = read_completions(backbone, *args)
    assert not read.log_prob[~batch["own"]].any()
    torch.testing.assert_close(read.log_prob, batch["said"], rtol=1e-4, atol=1e-5)
    assert (~batch["own"] & (batch["ids"] != backbone.tokens.pad_id)).sum() == 2 * 3 * 2 * 3

    def gradient(total):
        backbone.zero_grad(set_to_none=True)
        total.backward()
        return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])

    by_hand = torch.zeros(())
    for p, g in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        prompt = batch["prompt"][p, : batch["prompt_length"][p]].long()
        ids, own = batch["ids"][p, g].long(), batch["own"][p, g]
        logits = backbone.model(input_ids=torch.cat([prompt, ids])[None]).logits[0]
        said = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, ids[:, None])[:, 0]
        by_hand = by_hand + said[own].sum()
    wanted = gradient(by_hand)
    torch.testing.assert_close(gradient(read.log_prob.sum()), wanted, rtol=1e-3, atol=1e-4)


def test_what_names_no_action_is_replaced_and_paid_for(backbone):
    for rule, paid in (("penalize", -0.25), ("replace", 0.0)):
        illegal = {} if rule == "penalize" else {"illegal_reward": 0.0}
        found, envs = started(
            backbone, Copying, scripted(backbone, "c", "c"), on_illegal=rule, **illegal
        )
        assert len(envs[0].env.heard) == 2
        assert set(envs[0].env.heard) <= {0, 1}
        assert found.told["illegal"].tolist() == [[1.0]]
        own = found.told["return"]
        torch.testing.assert_close(found.batch["reward"], own + 2 * paid)


def test_what_names_no_action_may_end_the_episode(backbone):
    found, envs = started(backbone, Copying, scripted(backbone, "c"), on_illegal="end")
    assert envs[0].env.heard == []
    assert found.batch["reward"].tolist() == [[-0.25]]
    assert found.told["turns"].tolist() == [[1.0]]
    assert found.ended.all()


def test_random_replacements_are_the_same_again(backbone):
    played = []
    for _ in range(2):
        torch.manual_seed(0)
        _, envs = started(backbone, lambda: Copying(8), scripted(backbone, *["c"] * 8))
        played.append(envs[0].env.heard)
    assert played[0] == played[1]
    assert set(played[0]) == {0, 1}


def test_texts_are_actions_where_the_environment_takes_them(backbone):
    _, envs = started(
        backbone, lambda: Copying(text=True), scripted(backbone, "ab", " b"), actions=None
    )
    assert envs[0].env.heard == ["ab", "b"]
    found, envs = started(
        backbone,
        lambda: Copying(text=True),
        scripted(backbone, "a:b", "ab"),
        actions=None,
        answer=r":(.*)",
        most=3,
    )
    assert envs[0].env.heard == ["b", ""]
    assert found.told["illegal"].tolist() == [[0.5]]


def test_observations_may_list_what_is_allowed(backbone):
    found, envs = started(
        backbone, Masked, scripted(backbone, "f", "d", "a"), actions=None, max_turns=3
    )
    assert envs[0].env.heard[0] == 2
    assert set(envs[0].env.heard[1:]) <= {1, 2}
    assert [turn["illegal"] for turn in found.lines[0]["turns"]] == [False, True, True]


def test_long_episodes_are_cut_and_told_of(backbone):
    found, envs = started(backbone, lambda: Copying(9), scripted(backbone, "a", "b"), max_turns=2)
    assert not found.ended.any()
    assert len(envs[0].env.heard) == 2
    assert found.batch["length"].tolist() == [[5]]  # what nobody answers any more is left out
    # A prompt of 3, turns of up to 2, answers of 3: after the second turn there is room for no
    # third one.
    for length, turns in ((14, 2), (15, 3)):
        found, _ = started(
            backbone, lambda: Copying(9), scripted(backbone, *["ab"] * 9), max_length=length
        )
        assert found.told["turns"].tolist() == [[float(turns)]]
        assert int(found.batch["length"].max()) + 3 <= length
        assert not found.ended.any()


def test_a_first_text_without_room_is_refused(backbone):
    with pytest.raises(ConfigurationError, match="3 tokens first"):
        started(backbone, Copying, max_length=4)


def test_conversations_are_judged_as_a_whole(backbone):
    def score(prompts, completions, completion_ids, seed, turns, ended):
        assert [len(ids) for ids in completion_ids] == [2]
        assert (seed, len(turns[0]), ended) == ([3], 2, [True])
        return [float(completions[0].count("\n")) * 10.0]

    judge = CompletionJudge([score])
    found, _ = started(
        backbone, Copying, scripted(backbone, "c", "c"), judge=judge, env_reward_weight=2.0
    )
    own = 2.0 * found.told["return"].item() - 0.5
    assert found.batch["reward"].item() == pytest.approx(own + 10.0)
    assert found.parts["score"].tolist() == [[10.0]]
    assert found.parts["env"].equal(found.told["return"])
    assert found.parts["illegal"].tolist() == [[-0.5]]
    assert found.batch["token_reward"][0, 0, -1] > 9.0


def test_what_an_environment_raises_names_it(backbone):
    with pytest.raises(RunError, match=r"raised in step: KeyError: 'lost'"):
        started(backbone, failing)
    with pytest.raises(ConfigurationError, match="raised in reset"):
        started(backbone, lambda: failing("reset"))


def test_greedy_episodes_are_the_same_with_and_without_memory(backbone):
    def forgetful(*args):
        return TransformersGenerator()(*args)

    def make():
        return Copying(ragged=True)

    known, plain = (
        started(backbone, make, write, tuple(range(6)), 1, 3, temperature=0.0)[0].batch
        for write in (TransformersGenerator(), forgetful)
    )
    assert known["ids"].equal(plain["ids"])
    torch.testing.assert_close(known["said"], plain["said"], rtol=1e-5, atol=1e-5)
    assert known["ids"].shape[2] > 12
