"""Completions by vLLM's engine (https://docs.vllm.ai), which is made for writing many at once."""

import copy
import importlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_range, shortened, whole
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.generation import Generated, end_tokens
from rl_lightning.llm.generators import Generator, check_room
from rl_lightning.llm.load import Dtype
from rl_lightning.llm.merging import merged
from rl_lightning.llm.sampling import Sampling
from rl_lightning.llm.tune import name_without_adapters
from rl_lightning.nn.compiled import plain_name


class VLLMGenerator(Generator):
    """Writes by vLLM, in this process and on this process's GPU.

    The engine is made when it is first asked, of the backbone's configuration and tokenizer. It is
    given the backbone's weights, adapters merged, whenever their version is another than the one it
    has, and then forgets the keys and values of prompts that the former ones made. It draws from
    its own random numbers, seeded by torch's.

    vLLM says log-probabilities after `top_k` and `top_p` have cut, so these are refused here.

    Args:
        gpu_memory_utilization: Share of the GPU's memory for its weights, keys and values; the rest
            is left to training.
        max_model_len: Most tokens of a prompt and a completion; None: what the model reads.
        dtype: Of the engine's weights; None: the backbone's.
        engine: More of the arguments of vLLM's `LLM`, such as `enforce_eager: true`.
    """

    def __init__(
        self,
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        dtype: Dtype | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        check_range("gpu_memory_utilization", gpu_memory_utilization, 0.01, 1.0)
        self.gpu_memory_utilization = gpu_memory_utilization
        self.max_model_len = (
            None if max_model_len is None else whole("max_model_len", max_model_len, 2)
        )
        self.dtype: Dtype | None = dtype
        self.engine = dict(engine or {})
        self._llm: Any = None
        self._weights: tuple[weakref.ref[Backbone], int] | None = None  # whose, and which version

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_llm": None, "_weights": None}

    def __call__(
        self,
        backbone: Backbone,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        version: int,
    ) -> Generated:
        """See `rl_lightning.llm.generators.Generator`.

        Raises:
            ConfigurationError: If vLLM is missing, cannot be made of this model, or the sampling is
                not one whose log-probabilities it says.
        """
        samples = whole("samples", samples, 1)
        greedy = sampling.temperature == 0.0
        if not greedy and (sampling.top_k is not None or sampling.top_p is not None):
            raise ConfigurationError(
                "vLLM says log-probabilities of what top_k and top_p leave, not of the whole "
                "softmax: leave them out, or write by TransformersGenerator"
            )
        check_room(backbone, prompts, sampling)
        vllm = _import()
        if self._llm is None:
            self._llm = self._make(vllm, backbone)
        self._hand_over(backbone, version)
        parameters = vllm.SamplingParams(
            n=samples,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop),
            stop_token_ids=end_tokens(backbone),
            logprobs=0,  # of the chosen token alone
            detokenize=bool(sampling.stop),
        )
        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        answers = self._llm.generate(asked, parameters, use_tqdm=False)
        written = [part for answer in answers for part in answer.outputs]
        return _generated(backbone, written, sampling.max_new_tokens)

    def _make(self, vllm: Any, backbone: Backbone) -> Any:
        if backbone.encoder_decoder:
            raise ConfigurationError(
                f"vLLM does not write by a {backbone.model.config.model_type}, which reads by one "
                "half and writes by the other: write by TransformersGenerator"
            )
        model = backbone.model.get_base_model() if backbone.tune == "lora" else backbone.model
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        arguments = {
            "dtype": self.dtype or backbone.source["dtype"],
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len or backbone.positions,
            "seed": torch.initial_seed() % 2**31,
            "load_format": "dummy",  # weights are handed over
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # after the temperature
            **self.engine,
        }
        former = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its model is then to be reached
        try:
            # Making it seeds torch.
            with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
                config.save_pretrained(folder)
                backbone.tokens.tokenizer.save_pretrained(folder)
                return vllm.LLM(model=folder, **arguments)
        except Exception as error:  # whatever a foreign engine may say
            raise ConfigurationError(
                f"vLLM makes no engine of this {config.model_type} ({shortened(error)}): give "
                "other arguments, or write by TransformersGenerator"
            ) from error
        finally:
            if former is None:
                del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
            else:
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = former

    def _hand_over(self, backbone: Backbone, version: int) -> None:
        whose, had = self._weights or (None, None)
        if whose is not None and whose() is backbone and had == version:
            return
        self._weights = None  # what is half handed over is of no version
        with merged(backbone), torch.no_grad():

            def load(model: Any) -> None:
                model.load_weights(plain_weights(backbone))

            self._llm.apply_model(load)
        self._llm.reset_prefix_cache()
        self._weights = weakref.ref(backbone), version


def plain_weights(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """A model's weights by the names they have without adapters, which are left out."""
    for name, tensor in backbone.model.state_dict().items():
        if ".lora_" not in name:
            yield name_without_adapters(plain_name(name)), tensor


def _generated(backbone: Backbone, written: Sequence[Any], most: int) -> Generated:
    device = next(backbone.model.parameters()).device
    ids = torch.full((len(written), most), backbone.tokens.pad_id)
    said = torch.zeros(len(written), most)
    for row, part in enumerate(written):
        tokens = list(part.token_ids)
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        steps = zip(tokens, part.logprobs, strict=True)
        said[row, : len(tokens)] = torch.tensor([step[token].logprob for token, step in steps])
    length = torch.tensor([len(part.token_ids) for part in written])
    ended = torch.tensor([part.finish_reason == "stop" for part in written])
    return Generated(*(part.to(device) for part in (ids, length, said, ended)))


def _import() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigurationError(
            "VLLMGenerator needs vLLM, and a GPU that it runs on: "
            "pip install 'rl-lightning[vllm]', or write by TransformersGenerator "
            f"({shortened(error, 100)})"
        ) from error
