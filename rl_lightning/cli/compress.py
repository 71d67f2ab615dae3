"""`rl-lightning compress`: a checkpoint whose policy is pruned or quantised."""

import argparse
import contextlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rl_lightning.agents import Agent
from rl_lightning.agents.compressed import PolicyCall
from rl_lightning.agents.language_parts import features, language_models
from rl_lightning.agents.owned import whole_state, with_moved_models
from rl_lightning.cli.compare import compare, watch
from rl_lightning.cli.compress_language import (
    CUT,
    LANGUAGE_MODEL,
    MODEL_METHODS,
    Operator,
    check_language_model,
    folder_for,
    is_of_language_model,
    listening,
    needs_own,
    operators,
    read_texts,
    with_own_model,
)
from rl_lightning.compress import (
    count,
    fake_quantise,
    harden,
    prune_nodes,
    prune_weights,
    quantise,
)
from rl_lightning.compress.weights import maskable
from rl_lightning.core.checkpoints import read_checkpoint
from rl_lightning.core.errors import ConfigurationError, check_range, whole
from rl_lightning.core.tree import row_count
from rl_lightning.data import RLDataModule
from rl_lightning.data.resume.checkpoint_files import replace_file, saving
from rl_lightning.nn.modes import EvalMode

METHODS = MODEL_METHODS | {
    "prune-weights": "set the smallest weights to zero; --share says how many",
    "prune-nodes": "take nodes, channels (of a language model: of its feed-forward layers) out: "
    "smaller tensors; --share says how many",
    "quantise": "store weights in --bits 16, 8 to 3, 2 (ternary) or 1 (binary), for good",
    "quantise-aware": "round weights to --bits in every step of the `fit` that goes on from it",
    "harden": "pack the weights that were trained by quantise-aware",
}


def compress(args: Sequence[str], trusted: Sequence[str]) -> None:
    """Prune or quantise the policy of a checkpoint, and say how often it still acts alike.

    Args:
        args: Of the command line, behind `compress`.
        trusted: Packages outside this library that the checkpoint may name.

    Raises:
        ConfigurationError: If the checkpoint cannot be read, its policy cannot be compressed so,
            the file is there already, or the policies agree less than asked for.
    """
    given = _parser().parse_args(args)
    out = Path(given.out)
    if out.exists() or out.is_symlink():
        raise ConfigurationError(f"--out: {out} is there already; take another name")
    steps = whole("--observations", given.observations, 1)
    check_range("--min_agreement", given.min_agreement, 0.0, 1.0)
    _check_options(given)
    about_model = is_of_language_model(given)
    texts, folder = read_texts(given.texts), folder_for(given) if about_model else None
    checkpoint = with_moved_models(read_checkpoint(given.ckpt_path), given.ckpt_path)
    agent: Any = Agent.load_from_checkpoint(given.ckpt_path, trusted=trusted).eval()
    if not isinstance(getattr(agent, "policy", None), nn.Module):
        raise ConfigurationError(
            f"a {type(agent).__name__} has no policy to compress; rl-lightning export writes its "
            "language model"
        )
    beside = ""
    if about_model and check_language_model(agent, given).tune == "frozen":
        beside = " beside reading"  # which it does before
    data: Any = RLDataModule.load_from_checkpoint(given.ckpt_path, trusted=trusted)
    with listening(agent) as heard:
        seen = watch(agent, data, steps, keeps_raw=about_model)
    before, stored_before = _cost(agent, seen[0].x), _stored(agent, about_model)
    # With another vocabulary a model says the same; changed otherwise, something else.
    texts_of = [one.obs for one in seen] if about_model and given.method != CUT else []
    said = features(agent.policy, texts_of)
    with contextlib.ExitStack() as undo:
        if folder is not None and needs_own(agent, given):
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            used = [*texts, *heard] if given.method == CUT else None
            agent, checkpoint = with_own_model(agent, checkpoint, folder, used, trusted)
        else:
            folder = None
        x, optimizer = seen[0].shown(agent), _restored(agent, checkpoint)
        for operator in operators(agent, given) if about_model else [_operator(given)]:
            agent.compress(lambda policy, do=operator: do(policy, x, optimizer))
        agent.follow_features(said, features(agent.policy, texts_of))
        found = compare(agent, seen)
        after = _cost(agent, seen[0].shown(agent))
        print(
            f"{given.method}: {before[0]:,} → {after[0]:,} weights that are not zero, "
            f"{before[1]:,} → {after[1]:,} multiplications a decision{beside}, "
            f"{stored_before:,} → {_stored(agent):,} bytes of weights"
        )
        print(found)
        if found.share < given.min_agreement:
            raise ConfigurationError(
                f"--min_agreement: {given.min_agreement} is more than {found.share:.3f}, so nothing"
                " is written; compress less, or leave it out, and train on from what is written "
                "(fit)"
            )
        contents = io.BytesIO()
        torch.save(_changed(agent, checkpoint, optimizer), contents)
        with saving(f"--out: {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            replace_file(out, contents.getbuffer())
        undo.pop_all()
    print(f"wrote {out}")
    if folder is not None:
        print(
            f"wrote {folder}: config and tokenizer of its language model, which {out} needs there; "
            f"to train on with a configuration, give its encoder `model: {folder.resolve()}` and "
            "`pretrained: false`"
        )


def _check_options(given: Any) -> None:
    """Refuse options that the method needs and has not, or has and does not need."""
    share, bits, group = given.share, given.bits, given.group_size
    prunes = given.method in ("prune-weights", "prune-nodes", "prune-heads")
    rounds = given.method.startswith("quantise")
    for name, value, needed in (("share", share, prunes), ("bits", bits, rounds)):
        if needed and value is None:
            raise ConfigurationError(f"--{name}: {given.method} needs it")
        if value is not None and not needed:
            raise ConfigurationError(f"--{name}: {given.method} has no use for it; leave it out")
    if group is not None and not rounds:
        raise ConfigurationError(f"--group_size: {given.method} has no use for it; leave it out")
    if given.scope is not None and given.method != "prune-weights":
        raise ConfigurationError(f"--scope: {given.method} has no use for it; leave it out")


def _operator(given: Any) -> Operator:
    """The operator that the command line asks for, of what is around language models."""
    layers = given.layers.split(",") if given.layers else None
    share, bits, group = given.share, given.bits, given.group_size
    if given.method == "prune-weights":
        scope = given.scope or "global"
        return lambda policy, x, optimizer: prune_weights(
            policy, share, scope, layers or _own_layers(policy)
        )
    if given.method == "prune-nodes":
        return lambda policy, x, optimizer: prune_nodes(
            policy,
            share,
            x,
            layers=layers,
            keep=language_models(policy),
            optimizers=[optimizer] if optimizer else [],
        )
    if given.method == "harden":
        return lambda policy, x, optimizer: harden(policy)
    apply = quantise if given.method == "quantise" else fake_quantise
    return lambda policy, x, optimizer: apply(
        policy, bits, layers, group, keep=language_models(policy)
    )


def _own_layers(policy: nn.Module) -> list[str] | None:
    """What can be masked outside of language models; None if there is no such model."""
    models = tuple(f"{name}." for name in language_models(policy))
    if not models:
        return None
    return [name for name in maskable(policy, None) if not name.startswith(models)]


def _restored(agent: Any, checkpoint: dict[str, Any]) -> torch.optim.Optimizer | None:
    """The agent's optimizer as the checkpoint left it, if it has one."""
    states = checkpoint.get("optimizer_states") or []
    if not states or not agent.learns_by_gradient:
        return None
    optimizer = agent.configure_optimizers()
    optimizer.load_state_dict(states[0])
    return optimizer


def _changed(agent: Any, checkpoint: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """The checkpoint, with the agent as it is now, and nothing of what was being collected."""
    changed = {**checkpoint, "state_dict": agent.state_dict()}
    agent.save_compression(changed)
    if optimizer is not None:
        # Pruned and rounded weights come in another order from the agent that is built from this.
        fresh = agent.configure_optimizers()
        for group in fresh.param_groups:
            for parameter in group["params"]:
                if parameter in optimizer.state:
                    fresh.state[parameter] = optimizer.state[parameter]
        changed["optimizer_states"] = [fresh.state_dict()]
    for key, state in checkpoint.items():
        if isinstance(state, dict) and {"frames", "ranks"} <= state.keys():  # a data module's
            changed[key] = {**state, "ranks": [None], "texts": None}
    changed["callbacks"] = {}
    return changed


def _cost(agent: Any, x: Any) -> tuple[int, int]:
    """Weights that are not zero, and multiplications with those that are stored, of one call.

    Args:
        agent: Its policy is called,
        x: on preprocessed observations `[N, ...]`.
    """
    with torch.no_grad(), EvalMode(agent):
        cost = count(PolicyCall(agent), x)
    return cost.nonzero, cost.macs // row_count(x)


def _stored(agent: Any, every: bool = False) -> int:
    """Bytes of a file of what the policy has learned; of every weight, those that are loaded by
    name included, if asked for."""
    state = whole_state(agent) if every else agent.state_dict()
    contents = io.BytesIO()
    copies: dict[Any, Any] = {}  # what was loaded from a file may lie in it, all in one piece
    for key in [key for key in state if key.startswith("policy.")]:
        value = state[key]
        if isinstance(value, Tensor):
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            value = copies.setdefault(place if value.numel() else key, value.clone())
        copies[key.removeprefix("policy.")] = value
    torch.save({key: value for key, value in copies.items() if isinstance(key, str)}, contents)
    return contents.tell()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"compress: {message} (see rl-lightning compress --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rl-lightning compress",
        description="Make the policy of a checkpoint smaller: a new checkpoint for validate, "
        "predict, fit and load_from_checkpoint. It prints how often both policies act alike.",
        epilog="Methods: " + "; ".join(f"{name}: {what}" for name, what in METHODS.items()),
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of the agent")
    parser.add_argument("--out", required=True, help="checkpoint to write")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument(
        "--part", choices=("policy", LANGUAGE_MODEL),
        help="what is around the language model (default), or that itself",
    )  # fmt: skip
    parser.add_argument("--keep_layers", help="of prune-layers: numbers from 0, such as 0,1,2")
    parser.add_argument("--texts", metavar="FILE", help="of cut-vocabulary: a text in each line")
    parser.add_argument(
        "--model_out", metavar="FOLDER",
        help="for config and tokenizer of a language model that is changed; small-model beside "
        "small.ckpt by default",
    )  # fmt: skip
    parser.add_argument(
        "--share", type=float, help="of weights, nodes or heads to take out, [0, 1)"
    )
    parser.add_argument("--bits", type=int, help="of each weight: 16, or 8 to 1")
    parser.add_argument("--group_size", type=int, help="inputs that share a scale; all by default")
    parser.add_argument(
        "--scope", choices=("global", "layer"), help="compare weights of all layers, or of each"
    )
    parser.add_argument("--layers", help="names with commas between them; all that can be")
    parser.add_argument(
        "--observations", type=int, default=1000, help="to compare actions on (1000)"
    )
    parser.add_argument(
        "--min_agreement", type=float, default=0.0, help="write nothing below this share"
    )
    parser.add_argument("--trust", metavar="PACKAGE", help="import classes from it, too")
    return parser
