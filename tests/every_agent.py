"""All agents, and spaces that each of them takes, for tests that go through them."""

import gymnasium as gym

from rl_lightning import agents
from rl_lightning.core.types import EnvSpec

BOX = gym.spaces.Box(-1.0, 1.0, (2,))
DISCRETE = EnvSpec(BOX, gym.spaces.Discrete(2), "Discrete")
CONTINUOUS = EnvSpec(BOX, gym.spaces.Box(-1.0, 1.0, (1,)), "Continuous")
TABLE = EnvSpec(gym.spaces.Discrete(3), gym.spaces.Discrete(2), "Table")
SPECS = {"QTable": TABLE, "SAC": CONTINUOUS, "TD3": CONTINUOUS, "DDPG": CONTINUOUS}
# A reward model is trained as agents are, and acts nowhere; agents of tokens write.
TOKEN_AGENTS = ["DPO", "GRPO", "REINFORCEPlusPlus", "RLOO", "SFT", "TokenPPO"]
NO_ACTORS = ["Agent", "ReplayAgent", "RewardModel", "TokenAgent", *TOKEN_AGENTS]
AGENTS = [n for n in agents.__all__ if n not in NO_ACTORS]
