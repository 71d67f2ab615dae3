"""Agents: one file per algorithm."""

from rl_lightning.agents.a2c import A2C
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.bc import BC
from rl_lightning.agents.ddpg import DDPG
from rl_lightning.agents.discrete_sac import DiscreteSAC
from rl_lightning.agents.distill import Distill
from rl_lightning.agents.dpo import DPO
from rl_lightning.agents.dqn import DQN
from rl_lightning.agents.grpo import GRPO
from rl_lightning.agents.iql import IQL
from rl_lightning.agents.ppo import PPO
from rl_lightning.agents.q_table import QTable
from rl_lightning.agents.reinforce import REINFORCE
from rl_lightning.agents.reinforce_plus_plus import REINFORCEPlusPlus
from rl_lightning.agents.replay_agent import ReplayAgent
from rl_lightning.agents.reward_model import RewardModel
from rl_lightning.agents.rloo import RLOO
from rl_lightning.agents.sac import SAC
from rl_lightning.agents.sft import SFT
from rl_lightning.agents.td3 import TD3
from rl_lightning.agents.token_agent import TokenAgent
from rl_lightning.agents.token_ppo import TokenPPO

__all__ = [
    "A2C",
    "BC",
    "DDPG",
    "DPO",
    "DQN",
    "GRPO",
    "IQL",
    "PPO",
    "REINFORCE",
    "RLOO",
    "SAC",
    "SFT",
    "TD3",
    "Agent",
    "DiscreteSAC",
    "Distill",
    "QTable",
    "REINFORCEPlusPlus",
    "ReplayAgent",
    "RewardModel",
    "TokenAgent",
    "TokenPPO",
]
