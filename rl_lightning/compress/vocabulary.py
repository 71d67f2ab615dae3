"""Cutting a language model's vocabulary to the tokens that are in use."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rl_lightning.compress.token_rules import cut_rules, needed_ids, token_ids, unknown_id
from rl_lightning.core.errors import ConfigurationError, is_whole, shortened
from rl_lightning.llm.quiet import quiet
from rl_lightning.llm.tokens import control_tokens

# Of generation's settings, what lists tokens otherwise than as `…_token_id`.
_LISTS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")


class CutVocabulary(NamedTuple):
    """What `cut_vocabulary` gives beside the smaller model.

    Attributes:
        tokenizer: Of the kept tokens, under their new ids.
        kept: The old id of each new one, ascending.
        unknown: New id of the unknown token; None if the tokenizer has none.
    """

    tokenizer: Any
    kept: list[int]
    unknown: int | None


def cut_vocabulary(model: nn.Module, tokenizer: Any, used: Iterable[str | int]) -> CutVocabulary:
    """Remove the rows of all tokens that are not in use, in place, and number the others anew.

    Of texts whose tokens are all kept, hidden states are exactly what they were, and logits those
    of the kept tokens, but for the order in which a matrix product of another width may add. Kept
    are the tokens in use, control tokens and others that were added to the vocabulary, those that
    the model's configuration names, and what exactness takes: of BPE what tokens in use are merged
    from, of Unigram the least likely token.

    A word of other tokens is read in kept ones where the tokenizer can spell it with them, and
    otherwise as its unknown token; token ids from before go through `remap`, which knows the
    unknown token alone. BPE without an unknown token keeps its alphabet, with which it spells any
    text.

    `model.save_pretrained` and the tokenizer's give folders like any other's.

    Args:
        model: A transformers model, with or without a head, before it is quantised; changed in
            place. Optimizers of its embeddings have to be made anew.
        tokenizer: Its fast tokenizer (WordPiece, BPE, Unigram or WordLevel); stays as it is.
        used: Texts as the model will read them, or ids of tokens.

    Raises:
        ConfigurationError: If the tokenizer is none of these, if the model has tensors of the
            vocabulary's size that are not known, if nothing is used, or if the tokenizer does not
            read the texts as before. The model is as it was then.
    """
    if isinstance(used, str):
        raise ConfigurationError(f"used={shortened(used)!r} must be a list of texts or ids")
    used = list(used)
    if not used:
        raise ConfigurationError("used is empty: give the texts, or the ids, that are in use")
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            f"a {type(tokenizer).__name__} is no fast tokenizer, whose rules could be cut"
        )
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = [text for text in used if isinstance(text, str)]
    rows = _read(tokenizer, texts)
    tensors = vocabulary_tensors(model)
    size = len(tensors[0])
    ids = {token for row in rows for token in row}
    ids.update(_id(value, size) for value in used if not isinstance(value, str))
    configs = _configs(model)
    ids.update(token for config in configs for token in _configured(config, size))
    kept = sorted(needed_ids(rules, ids))
    if kept[-1] >= size:
        raise ConfigurationError(
            f"the tokenizer has id {kept[-1]}, and the model {size} rows: they do not belong "
            "together"
        )
    place = {old: new for new, old in enumerate(kept)}
    _check_positions(model, place)
    smaller = _smaller(tokenizer, cut_rules(rules, kept))
    for text, before, after in zip(texts, rows, _read(smaller, texts), strict=True):
        if [place[token] for token in before] != after:
            raise ConfigurationError(
                f"cut, the {type(tokenizer).__name__} does not read {shortened(text)!r} as before: "
                "its vocabulary cannot be cut"
            )
    _shrink(model, tensors, kept)
    for config in configs:
        _renumber(config, place, size)
    unknown = unknown_id(rules)
    return CutVocabulary(smaller, kept, None if unknown is None else place[unknown])


def remap(ids: Tensor, kept: Sequence[int], unknown: int | None) -> Tensor:
    """Token ids of the whole vocabulary as those of the cut one.

    Args:
        ids: Old ids, any shape.
        kept: The old id of each new one, ascending.
        unknown: New id of what is not kept.

    Returns:
        New ids, of the same shape and type.

    Raises:
        ConfigurationError: If `unknown` is None and an id is not kept.
    """
    table = torch.as_tensor(kept, device=ids.device)
    new = torch.searchsorted(table, ids.to(table.dtype)).clamp(max=len(table) - 1)
    absent = table[new] != ids
    if unknown is not None:
        new = torch.where(absent, unknown, new)
    elif bool(absent.any()):
        raise ConfigurationError(
            f"id {int(ids[absent][0])} was not kept, and there is no unknown token to put in its "
            "place"
        )
    return new.to(ids.dtype)


def _read(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of texts, control tokens spelled out and, where one is written, acting as well."""
    if not texts:
        return []
    spelled = tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"]
    control = control_tokens(tokenizer)
    acting = [text if any(word in text for word in control) else "" for text in texts]
    acted = tokenizer(acting, split_special_tokens=False, verbose=False)["input_ids"]
    return [[*one, *other] for one, other in zip(spelled, acted, strict=True)]


def _id(value: Any, size: int) -> int:
    if not is_whole(value) or not 0 <= value < size:
        raise ConfigurationError(
            f"used has {shortened(value)!r}: give texts, or ids from 0 to {size - 1}"
        )
    return int(value)


def _smaller(tokenizer: Any, rules: dict[str, Any]) -> Any:
    """A tokenizer like another, of other rules, by way of its own files."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
        smaller = type(tokenizer).from_pretrained(folder, local_files_only=True)
    smaller.name_or_path = tokenizer.name_or_path
    expected = token_ids(rules)
    if smaller.get_vocab() != expected:
        raise ConfigurationError(
            f"a {type(tokenizer).__name__} makes its vocabulary itself, and it cannot be cut"
        )
    return smaller


def vocabulary_tensors(model: Any) -> list[Tensor]:
    """What has a row for each token: the input embedding first, then the head's weight and bias.

    Args:
        model: As of `cut_vocabulary`.

    Raises:
        ConfigurationError: If there is something of the vocabulary's size that is none of these.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise ConfigurationError(
            f"the model's embedding is a {type(table).__name__}: cut the vocabulary of the plain "
            "model, before it is quantised"
        )
    head = model.get_output_embeddings()
    tensors: list[Tensor] = [table.weight]
    if head is not None:
        tensors += [head.weight, *([] if getattr(head, "bias", None) is None else [head.bias])]
    size, known = len(table.weight), {id(tensor) for tensor in tensors}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if size in tensor.shape and id(tensor) not in known:
            raise ConfigurationError(
                f"{name} is {tuple(tensor.shape)}, and the vocabulary has {size} rows: which of "
                "its rows go cannot be told; this model's vocabulary cannot be cut"
            )
    if head is not None and len(head.weight) != size:
        raise ConfigurationError(
            f"the model reads {size} tokens and writes {len(head.weight)}: its vocabulary cannot "
            "be cut"
        )
    return tensors


def _shrink(model: Any, tensors: list[Tensor], kept: list[int]) -> None:
    """Move the kept rows to the front, and cut off what is behind."""
    with torch.no_grad():
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            tensor[: len(kept)] = tensor[torch.tensor(kept, device=tensor.device)]
    padding = model.get_input_embeddings().padding_idx
    with quiet():
        model.resize_token_embeddings(len(kept), mean_resizing=False)
    table = model.get_input_embeddings()
    table.padding_idx = kept.index(padding) if padding in kept else None
    assert len(table.weight) == len(kept)


def _check_positions(model: Any, place: dict[int, int]) -> None:
    """RoBERTa's positions count from the pad token's id, which then must stay what it is."""
    padding = model.get_input_embeddings().padding_idx
    for name, part in model.named_modules():
        if not isinstance(part, nn.Embedding) or part is model.get_input_embeddings():
            continue
        if part.padding_idx is not None and place.get(part.padding_idx) != part.padding_idx:
            raise ConfigurationError(
                f"{name} counts from the pad token's id {padding}, which would change: this "
                "model's vocabulary cannot be cut"
            )


def _configs(model: Any) -> list[Any]:
    """Every configuration that may name tokens, each once."""
    writing = vars(model).get("generation_config")  # models that only read have none
    every = [model.config, model.config.get_text_config(), writing]
    configs = list({id(config): config for config in every if config is not None}.values())
    for config in configs:
        for name in _LISTS:
            if getattr(config, name, None):
                raise ConfigurationError(
                    f"the model's configuration has {name}, whose tokens are not renumbered: set "
                    "it to None first"
                )
    return configs


def _configured(config: Any, size: int) -> list[int]:
    """Ids that a configuration names, of those that have a row."""
    values = [v for k, v in config.to_dict().items() if k.endswith("_token_id")]
    flat = [i for v in values for i in (v if isinstance(v, list) else [v])]
    return [i for i in flat if isinstance(i, int) and 0 <= i < size]


def _renumber(config: Any, place: dict[int, int], size: int) -> None:
    for name, value in config.to_dict().items():
        if not name.endswith("_token_id"):
            continue
        if isinstance(value, list):
            setattr(config, name, [place.get(i, i) for i in value])
        elif isinstance(value, int) and 0 <= value < size:
            setattr(config, name, place[value])
