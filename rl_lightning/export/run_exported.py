"""Runs the policy that was exported into this folder, without what it was trained with.

It needs numpy, and onnxruntime for `policy.onnx` or torch for `policy.pt2`; `tokenizers` where a
language model reads texts; gymnasium for `--env`.

    python run_exported.py                                    # what it takes and what it gives
    python run_exported.py --env CartPole-v1 --episodes 10

    from run_exported import ExportedPolicy
    policy = ExportedPolicy()
    policy.reset()                        # where an episode begins
    action = policy.act(observation)      # at every step
"""

import argparse
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")


class ExportedPolicy:
    """Acts greedily on raw observations, and keeps a recurrent policy's memory.

    Args:
        folder: Where `spec.json` and the policy lie; None: where this file lies.
        threads: Of the CPU.
    """

    def __init__(self, folder: str | Path | None = None, threads: int = 1) -> None:
        folder = Path(__file__).parent if folder is None else Path(folder)
        self.spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.state: np.ndarray | None = None
        if self.spec["format"] == "onnx":
            self._call = _onnx(folder / self.spec["file"], threads)
        else:
            names = [one["name"] for one in self.spec["outputs"]]
            self._call = _torch(folder / self.spec["file"], threads, names)
        self._tokenizers = {
            part["tokenizer"]["file"]: _tokenizer(folder, part["tokenizer"])
            for part in self.spec["observation"]
            if part["kind"] == "tokens"
        }

    def reset(self) -> None:
        """Forget what came before: an episode begins."""
        self.state = None

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The action for one observation, as the environment takes it.

        Args:
            observation: As the environment returns it.
            mask: Allowed actions, `[A]` of 0 and 1; None: all of them.
        """
        return self.run([observation], None if mask is None else [mask])["action"][0]

    def run(self, observations: list[Any], masks: Any = None) -> dict[str, np.ndarray]:
        """All outputs for a list of N observations, `[N, ...]` each, by name.

        With memory, row i goes on from row i of the call before, until `reset`.
        """
        rows, feeds = len(observations), {}
        for part in self.spec["observation"]:
            values = [_entry(one, part["path"]) for one in observations]
            feeds.update(self._read(part, values))
        if memory := self.spec["state"]:
            if self.state is None:
                self.state = np.zeros((rows, memory["width"]), np.float32)
            if len(self.state) != rows:
                raise ValueError(f"{rows} observations after {len(self.state)}: call reset() first")
            feeds[memory["input"]] = self.state
        if allowed := self.spec["action_mask"]:
            shape = (rows, allowed["width"])
            given = np.ones(shape, bool) if masks is None else np.asarray(masks).astype(bool)
            if given.shape != shape:
                raise ValueError(f"mask: shape {given.shape} instead of {shape}")
            feeds[allowed["input"]] = given
        elif masks is not None:
            raise ValueError("mask: this policy takes none")
        outputs = self._call(feeds)
        if memory:
            self.state = outputs[memory["output"]]
        return outputs

    def _read(self, part: dict[str, Any], values: list[Any]) -> dict[str, np.ndarray]:
        name = part["names"][0]
        if part["kind"] == "array":
            return {name: np.stack([_array(name, value, part) for value in values])}
        for value in values:
            if not isinstance(value, str):
                raise TypeError(f"{name}: a text (str) is needed, not {type(value).__name__}")
        if part["kind"] == "words":
            return {name: _padded([_words(text, part) for text in values], 0, np.int32)[0]}
        tokenizer, rules = self._tokenizers[part["tokenizer"]["file"]], part["tokenizer"]
        rows = [_plain(one.ids, rules) for one in tokenizer.encode_batch(values)]
        ids, mask = _padded([row or [rules["pad"]] for row in rows], rules["pad"], np.int64)
        return {name: ids, part["names"][1]: mask}


def _onnx(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def _torch(path: Path, threads: int, names: list[str]) -> Any:
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(path).module()

    def call(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(value) for value in feeds.values()))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    return call


def _entry(observation: Any, path: list[str | int]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _array(name: str, value: Any, part: dict[str, Any]) -> np.ndarray:
    given = np.asarray(value)
    array = given.astype(part["dtype"])
    if list(array.shape) != part["shape"]:
        raise ValueError(f"{name}: shape {list(array.shape)} instead of {part['shape']}")
    if not np.isfinite(array).all() or (array.dtype.kind != "f" and (array != given).any()):
        raise ValueError(f"{name}: it holds what {part['dtype']} cannot hold, NaN or infinity")
    if "low" in part and ((array < part["low"]) | (array > part["high"])).any():
        raise ValueError(f"{name}: it is not between {part['low']} and {part['high']}")
    return array


def _padded(rows: list[list[int]], fill: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one length, at least 1, `[N, L]`, and where they are not filled up."""
    width = max(1, *map(len, rows))
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    out = np.full(mask.shape, fill, dtype)
    out[mask] = [number for row in rows for number in row]
    return out, mask.astype(np.int64)


def _words(text: str, rules: dict[str, Any]) -> list[int]:
    """Numbers of a text's words and of its runs of words."""
    words = _WORD.findall(text.lower())[: rules["max_words"]]
    runs = (
        " ".join(words[i : i + n])
        for n in range(1, rules["ngrams"] + 1)
        for i in range(len(words) - n + 1)
    )
    count = rules["buckets"]
    return [zlib.crc32(run.encode("utf-8", "surrogatepass")) % count + 1 for run in runs]


def _tokenizer(folder: Path, rules: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / rules["file"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(rules["max_length"], direction=rules["truncation_side"])
    tokenizer.encode_special_tokens = rules["split_special_tokens"]
    return tokenizer


def _plain(ids: list[int], rules: dict[str, Any]) -> list[int]:
    """Ids of a text in which what looks like a control token is none."""
    if not rules["split_special_tokens"]:
        return ids
    first, end = rules["before"], len(ids) - rules["behind"]
    unknown = [] if rules["unknown"] is None else [rules["unknown"]]
    body = [[i] if i not in rules["control"] else unknown for i in ids[first:end]]
    return [*ids[:first], *(i for one in body for i in one), *ids[end:]]


def _play(policy: ExportedPolicy, name: str, episodes: int) -> list[float]:
    import gymnasium

    try:
        env, returns = gymnasium.make(name), []
    except gymnasium.error.UnregisteredEnv as error:
        raise SystemExit(
            f"--env: {error} Of a package that registers it when imported: --env package:{name}"
        ) from error
    for seed in range(episodes):
        observation, info = env.reset(seed=seed)
        policy.reset()
        total, over = 0.0, False
        while not over:
            mask = info.get("action_mask") if policy.spec["action_mask"] else None
            try:
                action = policy.act(observation, mask)
            except (TypeError, ValueError, KeyError, IndexError) as error:
                wanted = policy.spec["environment"]
                raise SystemExit(f"--env {name}: {error}: the policy is for {wanted}") from error
            observation, reward, terminated, truncated, info = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the policy that lies beside this file.")
    parser.add_argument(
        "--env", help="play episodes of this Gymnasium environment: Name-v0, package:Name-v0"
    )
    parser.add_argument("--episodes", type=int, default=10)
    given = parser.parse_args()
    policy = ExportedPolicy()
    if given.env is None:
        spec = policy.spec
        print(f"{spec['agent']} for {spec['environment']}: {spec['file']}")
        for side in ("inputs", "outputs"):
            for one in spec[side]:
                print(f"  {side[:-1]:6}  {one['name']}: {one['dtype']} {one['shape']}")
        return
    returns = _play(policy, given.env, given.episodes)
    print(f"{len(returns)} episodes, mean return {np.mean(returns):.4g}, each {returns}")


if __name__ == "__main__":
    main()
