"""A policy as a folder that runs without this library: the graph, what it takes, how to run it."""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import (
    ConfigurationError,
    RunError,
    check_one_of,
    shortened,
    whole,
)
from rl_lightning.encoders import BagOfWordsEncoder, LLMEncoder
from rl_lightning.export import run_exported
from rl_lightning.export.decisions import MEANINGS, check_exportable
from rl_lightning.export.graph import FILES, FORMATS, Format, PolicyGraph, save, trace
from rl_lightning.export.inputs import Part
from rl_lightning.export.parity import Parity, compare
from rl_lightning.export.samples import sample_part
from rl_lightning.llm.export import save_tokens

LEAST_OBSERVATIONS = 64
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_policy(
    agent: Any, folder: str | Path, format: Format = "onnx", observations: int = 128
) -> Parity:
    """Write an agent's greedy policy, with the preprocessing of raw observations inside.

    The folder holds the graph (`policy.onnx`, or `policy.pt2` of `torch.export`), `spec.json`,
    `run_exported.py`, which runs it without this library, and the tokenizers of texts. What was
    written is run on sampled observations before it gets its name.

    Args:
        agent: Left as it is.
        folder: Made, with what it lies in, once all of it is written and agrees.
        format: `onnx` or `torch`.
        observations: That file and agent are compared on.

    Returns:
        How well they agree.

    Raises:
        ConfigurationError: If the folder is there, if packages are missing, or if the policy cannot
            be exported.
        RunError: If it cannot be written, or if the file does not act as the agent does.
    """
    check_one_of("format", format, FORMATS)
    count = whole("observations", observations, LEAST_OBSERVATIONS)
    folder = Path(folder).resolve()
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already; take another name")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise ConfigurationError(
            f"--format onnx needs {', '.join(missing)}: pip install 'rl-lightning[export]', or use "
            "--format torch"
        )
    check_exportable(agent)
    device = agent.device
    agent.cpu()
    part = folder.with_name(f".{folder.name}.part")
    try:
        graph = PolicyGraph(agent)
        _check_weights(graph, format)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        rng = np.random.default_rng(0)
        values = [sample_part(one, agent.encoder, 3, rng) for one in graph.parts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sampled texts may be longer than what is read
            inputs = graph.inputs(values)
        program, outputs = trace(graph, inputs)
        save(program, graph, format, part / FILES[format])
        spec = _spec(agent, graph, format, inputs, outputs, part)
        shutil.copyfile(run_exported.__file__, part / "run_exported.py")
        _write(spec, part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sampled texts may be longer than what is read
            parity = compare(agent, list(graph.parts), _loaded(part, format), count)
        parity.check(format)
        spec["parity"] = {
            "observations": parity.observations,
            "largest_relative_error": parity.error,
            "greedy_agreement": parity.agreement,
        }
        _write(spec, part)
        part.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {shortened(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        agent.to(device)
    return parity


def _loaded(folder: Path, format: Format) -> run_exported.ExportedPolicy:
    try:
        return run_exported.ExportedPolicy(folder)
    except Exception as error:  # onnxruntime has its own for each reason
        raise RunError(
            f"the graph that was written cannot be loaded: {shortened(error)}; "
            + ("use --format torch" if format == "onnx" else "use --format onnx")
        ) from error


def _check_weights(graph: PolicyGraph, format: Format) -> None:
    rounded = {t.dtype for t in graph.parameters() if t.dtype in (torch.bfloat16, torch.float16)}
    if format == "onnx" and rounded:
        raise ConfigurationError(
            f"{type(graph.policy.encoder).__name__} computes in {rounded.pop()}, which onnxruntime "
            "does not on a CPU; use --format torch, or load the model in dtype: float32"
        )


def _write(spec: dict[str, Any], folder: Path) -> None:
    text = json.dumps(spec, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "spec.json").write_text(text + "\n", encoding="utf-8")


def _spec(
    agent: Any,
    graph: PolicyGraph,
    format: Format,
    inputs: tuple[torch.Tensor, ...],
    outputs: tuple[torch.Tensor, ...],
    folder: Path,
) -> dict[str, Any]:
    texts = {name for part in graph.parts if part.kind != "array" for name in part.names}
    named = zip(graph.output_names, outputs, strict=True)
    return {
        "format": format,
        "file": FILES[format],
        "agent": type(agent).__name__,
        "environment": agent.spec.id,
        "observation_space": space_as_json(agent.spec.observation_space),
        "action_space": space_as_json(agent.spec.action_space),
        "action_names": agent.spec.action_names,
        "observation": [_reading(part, i, folder) for i, part in enumerate(graph.parts)],
        "inputs": [
            {
                "name": name,
                "dtype": _dtype(tensor),
                "shape": ["batch", "length"] if name in texts else ["batch", *tensor.shape[1:]],
            }
            for name, tensor in zip(graph.input_names, inputs, strict=True)
        ],
        "outputs": [
            {
                "name": name,
                "dtype": _dtype(tensor),
                "shape": ["batch", *tensor.shape[1:]],
                "meaning": MEANINGS.get(name.split("_")[0], MEANINGS.get(name, "")),
            }
            for name, tensor in named
        ],
        "state": {"input": "state", "output": "next_state", "width": graph.state_width}
        if graph.state_width
        else None,
        "action_mask": {"input": "action_mask", "width": graph.mask_width}
        if graph.mask_width
        else None,
        "versions": _versions(format),
    }


def _reading(part: Part, number: int, folder: Path) -> dict[str, Any]:
    """How `run_exported.py` makes tensors of a part of an observation."""
    own = {"path": list(part.path), "kind": part.kind, "names": list(part.names)}
    if isinstance(part.encoder, LLMEncoder):
        name = f"tokenizer{number or ''}.json"
        return {**own, "tokenizer": save_tokens(part.encoder.backbone.tokens, folder / name)}
    if isinstance(part.encoder, BagOfWordsEncoder):
        read = part.encoder
        rules = {"buckets": read.buckets, "ngrams": read.ngrams, "max_words": read.max_words}
        return {**own, **rules}
    space: Any = part.space
    own |= {"dtype": np.dtype(space.dtype).name, "shape": list(space.shape)}
    if isinstance(space, gym.spaces.Discrete):
        own |= {"low": int(space.start), "high": int(space.start + space.n - 1)}
    elif isinstance(space, gym.spaces.MultiDiscrete):
        own |= {"low": space.start.tolist(), "high": (space.start + space.nvec - 1).tolist()}
    elif isinstance(space, gym.spaces.MultiBinary):
        own |= {"low": 0, "high": 1}
    return own


def space_as_json(space: gym.Space) -> dict[str, Any]:
    """A space as JSON holds it: no bound is None, and equal bounds of all entries are one."""
    s = gym.spaces
    kind = type(space).__name__
    if isinstance(space, s.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        dtype = np.dtype(space.dtype).name
        return {"kind": kind, "shape": list(space.shape), "dtype": dtype, **bounds}
    if isinstance(space, s.Discrete):
        return {"kind": kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, s.MultiDiscrete):
        return {"kind": kind, "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, s.MultiBinary):
        return {"kind": kind, "shape": list(space.shape)}
    if isinstance(space, s.Dict):
        return {"kind": kind, "spaces": {str(k): space_as_json(v) for k, v in space.items()}}
    if isinstance(space, s.Tuple):
        return {"kind": kind, "spaces": [space_as_json(v) for v in space]}
    return {"kind": kind}


def _bound(values: np.ndarray) -> Any:
    plain = [float(v) if np.isfinite(v) else None for v in values.reshape(-1)]
    return plain[0] if len(set(plain)) == 1 else plain


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _versions(format: Format) -> dict[str, str]:
    from importlib.metadata import version

    names = ["torch", "numpy", *(PACKAGES if format == "onnx" else ())]
    return {name: version(name) for name in names}
