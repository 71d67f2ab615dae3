"""Who writes groups of completions: this process, or an engine beside it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.chunks import FEWEST, like_lengths
from rl_lightning.llm.continuation import Continuation
from rl_lightning.llm.generation import Generated, write
from rl_lightning.llm.memory import Known, Memory
from rl_lightning.llm.merging import merged
from rl_lightning.llm.sampling import Sampling

__all__ = [
    "Generated",
    "Generator",
    "TransformersGenerator",
    "check_generator",
    "check_room",
    "remembering",
]


class Generator(Protocol):
    """Writes completions of prompts: token ids in, token ids out."""

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        version: int,
    ) -> Generated:
        """G completions of each of N prompts, `[N·G, T]`, T being `sampling.max_new_tokens`.

        Args:
            backbone: With its head; its weights are the ones that write.
            prompts: Token ids of each prompt.
            samples: G.
            sampling: How.
            version: Updates of the weights so far: an engine outside this process must have those
                of exactly that many.
        """
        ...


class TransformersGenerator(Generator):
    """Writes in this process, by the backbone itself.

    Each prompt is read once for its whole group, and prompts of like lengths together. Samples are
    drawn from torch's random numbers.

    Args:
        merge_lora: Merge adapters into the weights while writing: less work a token. With bfloat16
            weights the sum is rounded, and what is written is of a slightly other model.
        batch_size: Most completions that are written at a time.
    """

    def __init__(self, merge_lora: bool = True, batch_size: int = 256) -> None:
        self.merge_lora = merge_lora
        self.batch_size = whole("batch_size", batch_size, 1)
        self.memory: Memory | None = None

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        version: int = 0,
    ) -> Generated:
        """See `Generator`.

        Raises:
            ConfigurationError: If a prompt is empty, or too long for the model.
        """
        samples = whole("samples", samples, 1)
        check_room(backbone, prompts, sampling)
        device = next(backbone.model.parameters()).device
        parts: list[tuple[torch.Tensor, Generated]] = []
        with merged(backbone) if self.merge_lora else contextlib.nullcontext():
            for chunk, known in self._chunks(prompts, samples):
                padded, mask = backbone.tokens.pad([prompts[i] for i in chunk])
                prompt, length = padded.to(device), mask.sum(1).to(device)
                for first in range(0, samples, self.batch_size):
                    number = torch.arange(first, min(first + self.batch_size, samples))
                    own = (torch.tensor(chunk)[:, None] * samples + number).flatten()
                    step = self._step(backbone, known)
                    written = write(backbone, prompt, length, sampling, len(number), step)
                    parts.append((own.to(device), written))
                    if self.memory is not None and step is not None:
                        asked = [prompts[i] for i in (own // samples).tolist()]
                        said = zip(written.ids.tolist(), written.length.tolist(), strict=True)
                        told = [ids[:count] for ids, count in said]
                        pairs = zip(asked, told, strict=True)
                        self.memory.keep(step, [[*before, *ids] for before, ids in pairs])
        order = torch.cat([own for own, _ in parts]).argsort()
        columns = zip(*(written for _, written in parts), strict=True)
        return Generated(*(torch.cat(column)[order] for column in columns))

    def _chunks(
        self, prompts: Sequence[Sequence[int]], samples: int
    ) -> Iterator[tuple[list[int], Known | None]]:
        """Numbers of prompts that are gone on with together, and what is known of them."""
        new = set(range(len(prompts)))
        for known in [] if self.memory is None or samples > 1 else self.memory.recall(prompts):
            new -= set(known.numbers)
            yield known.numbers, known
        rest = sorted(new)
        most = max(self.batch_size // samples, 1)
        fewest = max(FEWEST // samples, 1)
        for chunk in like_lengths([len(prompts[i]) for i in rest], most, fewest=fewest):
            yield [rest[i] for i in chunk], None

    def _step(self, backbone: Backbone, known: Known | None) -> Continuation | None:
        if known is None:
            return None if self.memory is None else Continuation(backbone)
        device = next(backbone.model.parameters()).device
        known.step.recall(known.rows.to(device), known.length.to(device))
        return known.step


def check_generator(generator: Any) -> Generator:
    """What writes: the one that is given, or for None this process.

    Raises:
        ConfigurationError: If it cannot be called.
    """
    if generator is None:
        return TransformersGenerator()
    if isinstance(generator, type) or not callable(generator):
        raise ConfigurationError(
            "data.generator must be an object called with backbone, prompts, samples, sampling and "
            f"version, such as TransformersGenerator(), not {shortened(repr(generator), 80)}; "
            "leave it out, and this process writes"
        )
    made: Any = generator
    return made


@contextlib.contextmanager
def remembering(generator: Generator) -> Iterator[None]:
    """While inside, prompts that begin with what was written in the call before are read from there
    on, by a generator in this process; others may have such a cache of their own. The weights must
    stay as they are.
    """
    if not isinstance(generator, TransformersGenerator):
        yield
        return
    generator.memory = Memory()
    try:
        yield
    finally:
        generator.memory = None


def check_room(backbone: Backbone, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
    """Refuse prompts that a model cannot go on from.

    Raises:
        ConfigurationError: If there are none, one is empty, or one is too long for the model.
    """
    lengths = [len(ids) for ids in prompts]
    if not lengths or min(lengths) == 0:
        what = f"prompt {lengths.index(0)} has no tokens" if lengths else "there are no prompts"
        raise ConfigurationError(f"{what}: there is nothing to go on from")
    if backbone.encoder_decoder or backbone.positions is None:
        return
    if max(lengths) + sampling.max_new_tokens > backbone.positions:
        raise ConfigurationError(
            f"a prompt of {max(lengths)} tokens and max_new_tokens={sampling.max_new_tokens} are "
            f"more than the {backbone.positions} tokens the model reads: shorten either"
        )
