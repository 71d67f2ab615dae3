"""From an agent to a graph of tensors: raw observations in, scores and greedy actions out."""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rl_lightning.compress.packed import PackedLayer
from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.encoders import BagOfWordsEncoder, LLMEncoder
from rl_lightning.export.decisions import decider, reading, state_width
from rl_lightning.export.inputs import Part, assembled, parts_of
from rl_lightning.export.traceable import make_traceable

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[str, str] = {"onnx": "policy.onnx", "torch": "policy.pt2"}
# One file holds at most 2 GB (protobuf); the weights of more lie beside it.
MOST_BYTES_INSIDE = 1_500_000_000


class PolicyGraph(nn.Module):
    """An agent's greedy act as a function of tensors.

    Inputs are the tensors of the parts of an observation, each in the dtype of its space, then
    `state` `[N, H]` of a recurrent policy and `action_mask` `[N, A]` of one that takes masks.
    Outputs are those of `decider`, the action in the dtype of its space and within its bounds.

    Args:
        agent: On the CPU; left as it is.

    Attributes:
        parts: What is read of an observation.
        state_width: H; 0 without memory.
        mask_width: A; 0 without masks.
        input_names: Of all inputs, in their order.
        output_names: Of all outputs, in their order; known after a first call.
    """

    low: Tensor | None
    high: Tensor | None

    def __init__(self, agent: Any) -> None:
        super().__init__()
        spec = agent.spec
        self.parts: Sequence[Part] = list(parts_of(agent.encoder, spec.observation_space))
        self.state_width, self.mask_width = state_width(agent), int(agent.mask_dim)
        own = _copy(agent)
        # In a list: of an agent only the policy belongs to the graph.
        self.agents, self.policy = [own], own.policy
        self.decides = decider(own)
        space: Any = spec.action_space
        self.action_dtype = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        bounded = isinstance(space, gym.spaces.Box)
        self.register_buffer("low", torch.from_numpy(space.low.copy()) if bounded else None)
        self.register_buffer("high", torch.from_numpy(space.high.copy()) if bounded else None)
        self.input_names = [name for part in self.parts for name in part.names]
        self.input_names += ["state"] if self.state_width else []
        self.input_names += ["action_mask"] if self.mask_width else []
        self.output_names: list[str] = []
        self.eval().requires_grad_(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        mask = given.pop() if self.mask_width else None
        state = given.pop() if self.state_width else None
        tensors = iter(given)
        values = [[next(tensors) for _ in part.names] for part in self.parts]
        obs = assembled(self.parts, [v if len(v) > 1 else v[0] for v in values])
        said = self.decides(reading(self.agents[0], obs), state, mask)
        action = said["action"].to(self.action_dtype)
        if self.low is not None and self.high is not None:
            action = torch.minimum(torch.maximum(action, self.low), self.high)
        said["action"] = action
        self.output_names = list(said)
        return tuple(said.values())

    def inputs(self, values: Sequence[Sequence[Any]]) -> tuple[Tensor, ...]:
        """The inputs for B values of each part, with a fresh memory and everything allowed."""
        tensors = [
            t for part, own in zip(self.parts, values, strict=True) for t in part.tensors(own)
        ]
        rows = len(values[0])
        if self.state_width:
            tensors.append(torch.zeros(rows, self.state_width))
        if self.mask_width:
            tensors.append(torch.ones(rows, self.mask_width, dtype=torch.bool))
        return tuple(t.clone() for t in tensors)  # a graph would remember what they are views of


def trace(
    graph: PolicyGraph, inputs: tuple[Tensor, ...]
) -> tuple[ExportedProgram, tuple[Tensor, ...]]:
    """The graph for any number of rows, and texts of any length that the encoder reads; and what it
    gives for the inputs.

    Args:
        graph: What to trace.
        inputs: Of a few rows, more than one.

    Raises:
        ConfigurationError: If `torch.export` cannot follow the policy.
    """
    rows = Dim("batch", min=1)
    shapes: list[dict[int, Any]] = []
    for i, part in enumerate(graph.parts):
        longest = part.longest or 1
        more = {1: Dim(f"length{i}", min=1, max=longest)} if longest > 1 else {}
        shapes += [{0: rows, **more}] * len(part.names)
    # Of a length of 1 torch.export would take it that it is always 1.
    given = (
        _padded(tensor) if 1 in shape else tensor
        for tensor, shape in zip(inputs, shapes, strict=False)
    )
    inputs = (*given, *inputs[len(shapes) :])
    shapes += [{0: rows}] * (len(inputs) - len(shapes))
    kinds = sorted({type(graph.policy).__name__, type(graph.policy.encoder).__name__})
    try:
        with _quiet(), torch.no_grad():
            outputs = graph(*inputs)
            dynamic = {"inputs": tuple(shapes)}
            return torch.export.export(graph, inputs, dynamic_shapes=dynamic), outputs
    except Exception as error:  # whatever a module does that is no arithmetic of tensors
        raise ConfigurationError(
            f"torch.export cannot trace {' and '.join(kinds)}: {shortened(error)}; what acts must "
            "be operations on tensors alone, whose shapes do not depend on what they hold "
            "(--format huggingface writes a language model by itself)"
        ) from error


def save(program: ExportedProgram, graph: PolicyGraph, format: Format, path: Path) -> None:
    """Write a traced graph.

    Raises:
        ConfigurationError: If ONNX has no words for an operation in it.
    """
    for node in program.graph.nodes:  # where each was called from, in files of this machine
        node.meta.pop("stack_trace", None)
    if format == "torch":
        _forget_unused(program)
        with _quiet():
            torch.export.save(program, path)
        return
    packed = any(isinstance(layer, PackedLayer) for layer in graph.policy.modules())
    try:
        with _quiet():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=not packed,
                input_names=graph.input_names,
                output_names=graph.output_names,
            )
            if packed:  # whose weights it would restore, as constants
                from onnxscript.optimizer import optimize_ir

                optimize_ir(converted.model, should_fold=_stays)
    except Exception as error:
        raise ConfigurationError(
            f"{type(graph.policy).__name__} holds an operation that ONNX does not know: "
            f"{shortened(_first_cause(error))}; use --format torch"
        ) from error
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    converted.save(path, external_data=size > MOST_BYTES_INSIDE)


def _stays(node: Any) -> bool | None:
    """False of what restores weights: computed beforehand, they would be many bytes again."""
    return False if node.op_type in ("Cast", "BitShift", "BitwiseAnd") else None


def _padded(tensor: Tensor) -> Tensor:
    """Of one column, a second one of padding."""
    return tensor if tensor.shape[1] > 1 else nn.functional.pad(tensor, (0, 1))


def _copy(agent: Any) -> Any:
    """The agent with encoders and statistics that can be traced, on the CPU."""
    # What texts said is not needed twice.
    known = [
        one.cache for one in agent.modules() if isinstance(one, BagOfWordsEncoder | LLMEncoder)
    ]
    own = copy.deepcopy(agent, {id(cache): cache for cache in known}).cpu().eval()
    make_traceable(own)
    return own


def _forget_unused(program: ExportedProgram) -> None:
    """Leave out the weights that the graph does not read: critics."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, given in zip(nodes, program.graph_signature.input_specs, strict=True):
        if not node.users and given.target in program.state_dict:
            weight = program.state_dict[given.target]
            empty = weight.new_empty(0)
            if isinstance(weight, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=False)
            program.state_dict[given.target] = empty


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of its own insides and of what is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
