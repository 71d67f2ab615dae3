"""Agents: one file per algorithm."""

from rl_lightning.agents.a2c import A2C
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.dqn import DQN
from rl_lightning.agents.ppo import PPO
from rl_lightning.agents.reinforce import REINFORCE
from rl_lightning.agents.sac import SAC

__all__ = ["A2C", "DQN", "PPO", "REINFORCE", "SAC", "Agent"]
