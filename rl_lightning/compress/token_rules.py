"""The rules of a fast tokenizer, as `tokenizer.json` has them, for fewer tokens: pure functions."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened

Rules = dict[str, Any]


def token_ids(rules: Rules) -> dict[str, int]:
    """All tokens with their ids, the added ones included."""
    added = {token["content"]: token["id"] for token in rules["added_tokens"]}
    return _vocabulary(rules["model"]) | added


def unknown_id(rules: Rules) -> int | None:
    """The id of the unknown token, if there is one."""
    model = rules["model"]
    if model["type"] == "Unigram":
        return model["unk_id"]
    unknown = model["unk_token"]
    return None if unknown is None else token_ids(rules).get(unknown)


def needed_ids(rules: Rules, used: Iterable[int]) -> set[int]:
    """Ids to keep, so that all texts made of the used ones are read as before.

    Beside the used, unknown and added tokens these are:

    - BPE (Sennrich et al. 2016): all tokens that a kept one may be merged from. Then all merges
      that happen in such a text are kept, in their order, and of those that remain no other could
      happen before. Without an unknown token also the alphabet; with byte fallback the bytes.
    - Unigram (Kudo 2018): the token of the lowest score, from which the unknown token's is made.
      With fewer segmentations the best stays the best.
    - WordPiece, WordLevel: nothing. The longest match of all is the longest of the kept.

    Args:
        rules: `tokenizer.json`.
        used: Ids in use.

    Raises:
        ConfigurationError: If the tokenizer's model is another one.
    """
    model = rules["model"]
    kept = {*used, *(token["id"] for token in rules["added_tokens"])}
    unknown = unknown_id(rules)
    if unknown is not None:
        kept.add(unknown)
    ids = _vocabulary(model)
    if model.get("byte_fallback"):
        kept.update(ids[token] for token in map("<0x{:02X}>".format, range(256)) if token in ids)
    if model["type"] == "BPE":
        suffix = model["end_of_word_suffix"] or ""
        if unknown is None and not model.get("byte_fallback"):
            kept.update(i for token, i in ids.items() if len(token.removesuffix(suffix)) <= 1)
        parts: dict[int, set[int]] = {}
        for one, other, merged in _merges(model):
            parts.setdefault(ids[merged], set()).update((ids[one], ids[other]))
        waiting = list(kept)
        while waiting:
            new = parts.get(waiting.pop(), set()) - kept
            kept |= new
            waiting.extend(new)
    elif model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept.add(scores.index(min(scores)))
    return kept


def cut_rules(rules: Rules, kept: Sequence[int]) -> Rules:
    """The rules of the kept tokens alone, whose new id is their place among them.

    Args:
        rules: `tokenizer.json`.
        kept: Old ids, ascending, as `needed_ids` gives them.

    Raises:
        ConfigurationError: If the tokenizer's model is of a kind that is not known.
    """
    rules = copy.deepcopy(rules)
    model = rules["model"]
    place = {old: new for new, old in enumerate(kept)}
    ids = _vocabulary(model)
    if model["type"] == "BPE":
        model["merges"] = [
            [one, other]
            for one, other, merged in _merges(model)
            if all(ids[token] in place for token in (one, other, merged))
        ]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model["unk_id"] is not None:
            model["unk_id"] = place[model["unk_id"]]
    else:
        model["vocab"] = {token: place[old] for token, old in ids.items() if old in place}
    for token in rules["added_tokens"]:
        token["id"] = place[token["id"]]
    if rules.get("padding"):
        rules["padding"]["pad_id"] = place.get(rules["padding"]["pad_id"], 0)
    if rules.get("post_processor"):
        _renumber(rules["post_processor"], place)
    return rules


def _vocabulary(model: Rules) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    if model["type"] not in ("WordPiece", "BPE", "WordLevel"):
        raise ConfigurationError(
            f"the tokenizer is a {shortened(model['type'])}: WordPiece, BPE, Unigram and WordLevel "
            "can be cut"
        )
    return model["vocab"]


def _merges(model: Rules) -> list[tuple[str, str, str]]:
    """What is merged with what, and what it becomes, the first to happen first."""
    prefix = len(model["continuing_subword_prefix"] or "")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(one, other, one + other[prefix:]) for one, other in pairs]


def _renumber(part: Rules, place: dict[int, int]) -> None:
    """Give the control tokens that are put around a text their new ids."""
    if part["type"] == "Sequence":
        for inner in part["processors"]:
            _renumber(inner, place)
    elif part["type"] == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [place[old] for old in token["ids"]]
    elif part["type"] in ("BertProcessing", "RobertaProcessing"):
        for role in ("sep", "cls"):
            part[role][1] = place[part[role][1]]
