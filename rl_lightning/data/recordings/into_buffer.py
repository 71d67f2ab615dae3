"""Recorded episodes in a replay buffer, before anything is collected."""

from collections.abc import Iterable

import numpy as np
import torch
from tqdm import tqdm

from rl_lightning.core.protocols import Actor
from rl_lightning.core.tree import row_count, rows, to_device
from rl_lightning.data.recordings.episode import Episode
from rl_lightning.data.recordings.rows import READ_ROWS, batched, cut
from rl_lightning.data.replay.buffer import ReplayBuffer

CPU = torch.device("cpu")  # where the buffer is: rows are taken apart there


def preload(
    buffer: ReplayBuffer,
    episodes: Iterable[Episode],
    agent: Actor,
    action_dtype: torch.dtype,
    observe: bool,
    bar: tqdm,
) -> int:
    """Write whole episodes, each to the environment whose rows are the least used.

    Args:
        buffer: Where to.
        episodes: What was recorded.
        agent: Preprocesses observations; the caller has put it into eval mode and the right
            precision context.
        action_dtype: Of the agent's actions.
        observe: Show the observations to the running statistics, too.
        bar: Is told of every row.

    Returns:
        Transitions written; of more than the buffer holds, the first ones are overwritten.
    """
    used, written = np.zeros(buffer.num_envs, np.int64), 0
    for episode in episodes:
        column = np.array([used.argmin()])
        used[column] += len(episode) + buffer.stack
        action = torch.as_tensor(episode.actions, dtype=action_dtype)
        for start in range(0, len(episode) + 1, READ_ROWS):
            obs = batched(cut(episode.observations, start, start + READ_ROWS))
            if observe:
                agent.observe(obs)
            x = to_device(agent.preprocess(obs), CPU)
            masks = cut(episode.action_masks, start, start + READ_ROWS)
            mask = None if masks is None else torch.from_numpy(masks)
            for k in range(row_count(x)):
                row, allowed = rows(x, np.array([k])), None if mask is None else mask[k : k + 1]
                t = start + k - 1  # what led to this observation
                if t < 0:
                    buffer.begin(row, column, allowed)
                    continue
                taken = slice(t, t + 1)
                buffer.act(
                    action[taken],
                    episode.rewards[taken],
                    episode.terminations[taken],
                    episode.truncations[taken],
                    column,
                )
                buffer.push(row, column, allowed)
            bar.update(row_count(x))
        written += len(episode)
    return written
