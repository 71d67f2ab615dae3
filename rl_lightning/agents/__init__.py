"""Agents: one file per algorithm."""

from rl_lightning.agents.a2c import A2C
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.ppo import PPO
from rl_lightning.agents.reinforce import REINFORCE

__all__ = ["A2C", "PPO", "REINFORCE", "Agent"]
