"""The replay buffer: rows of experience, how they are kept, and how they are drawn."""

from rl_lightning.data.replay.buffer import ReplayBuffer

__all__ = ["ReplayBuffer"]
