"""Reinforcement learning on PyTorch Lightning, with large language models inside the agent."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl_lightning import envs  # registers environments, for gymnasium.make
from rl_lightning.core.former import install

install()
__version__ = "0.1.0"

if TYPE_CHECKING:
    from rl_lightning.agents import (
        A2C,
        BC,
        DDPG,
        DQN,
        IQL,
        PPO,
        REINFORCE,
        SAC,
        TD3,
        Agent,
        DiscreteSAC,
        QTable,
        ReplayAgent,
        RewardModel,
    )
    from rl_lightning.core.loss import Loss
    from rl_lightning.core.types import EnvSpec
    from rl_lightning.data import (
        OfflineDataModule,
        PreferenceDataModule,
        ReplayDataModule,
        RolloutDataModule,
    )
    from rl_lightning.encoders import (
        BagOfWordsEncoder,
        DictEncoder,
        Encoder,
        GuidedEncoder,
        ImpalaCNN,
        LLMEncoder,
        MinAtarCNN,
        MLPEncoder,
        NatureCNN,
        TableEncoder,
        TextActionEncoder,
    )
    from rl_lightning.policies import (
        ActorCritic,
        ContinuousNetwork,
        DiscreteNetwork,
        GeneratingPolicy,
        OfflineNetwork,
        Policy,
        QNetwork,
        RolloutPolicy,
        ScoringPolicy,
        ScoringQNetwork,
    )
    from rl_lightning.rewards import (
        CountBonus,
        GoalSimilarity,
        LabelledReward,
        LearnedReward,
        Likelihood,
        Reward,
        RNDBonus,
        StateReward,
        SuggestedGoals,
        TextFunction,
    )

# Names are imported when they are first used, so that `import rl_lightning` costs nothing.
_HOMES = {
    "A2C": "agents",
    "BC": "agents",
    "BagOfWordsEncoder": "encoders",
    "IQL": "agents",
    "OfflineDataModule": "data",
    "OfflineNetwork": "policies",
    "ContinuousNetwork": "policies",
    "DDPG": "agents",
    "DQN": "agents",
    "DiscreteNetwork": "policies",
    "DiscreteSAC": "agents",
    "QNetwork": "policies",
    "QTable": "agents",
    "PreferenceDataModule": "data",
    "ReplayDataModule": "data",
    "RewardModel": "agents",
    "SAC": "agents",
    "TD3": "agents",
    "PPO": "agents",
    "Policy": "policies",
    "RolloutPolicy": "policies",
    "REINFORCE": "agents",
    "ActorCritic": "policies",
    "Agent": "agents",
    "DictEncoder": "encoders",
    "Encoder": "encoders",
    "EnvSpec": "core.types",
    "GuidedEncoder": "encoders",
    "ImpalaCNN": "encoders",
    "LLMEncoder": "encoders",
    "Loss": "core.loss",
    "MLPEncoder": "encoders",
    "MinAtarCNN": "encoders",
    "NatureCNN": "encoders",
    "ReplayAgent": "agents",
    "CountBonus": "rewards",
    "GoalSimilarity": "rewards",
    "LearnedReward": "rewards",
    "LabelledReward": "rewards",
    "Likelihood": "rewards",
    "RNDBonus": "rewards",
    "Reward": "rewards",
    "StateReward": "rewards",
    "SuggestedGoals": "rewards",
    "TextFunction": "rewards",
    "RolloutDataModule": "data",
    "TableEncoder": "encoders",
    "TextActionEncoder": "encoders",
    "GeneratingPolicy": "policies",
    "ScoringPolicy": "policies",
    "ScoringQNetwork": "policies",
}
__all__ = [
    "A2C",
    "BC",
    "DDPG",
    "DQN",
    "IQL",
    "PPO",
    "REINFORCE",
    "SAC",
    "TD3",
    "ActorCritic",
    "Agent",
    "BagOfWordsEncoder",
    "ContinuousNetwork",
    "CountBonus",
    "DictEncoder",
    "DiscreteNetwork",
    "DiscreteSAC",
    "Encoder",
    "EnvSpec",
    "GeneratingPolicy",
    "GoalSimilarity",
    "GuidedEncoder",
    "ImpalaCNN",
    "LLMEncoder",
    "LabelledReward",
    "LearnedReward",
    "Likelihood",
    "Loss",
    "MLPEncoder",
    "MinAtarCNN",
    "NatureCNN",
    "OfflineDataModule",
    "OfflineNetwork",
    "Policy",
    "PreferenceDataModule",
    "QNetwork",
    "QTable",
    "RNDBonus",
    "ReplayAgent",
    "ReplayDataModule",
    "Reward",
    "RewardModel",
    "RolloutDataModule",
    "RolloutPolicy",
    "ScoringPolicy",
    "ScoringQNetwork",
    "StateReward",
    "SuggestedGoals",
    "TableEncoder",
    "TextActionEncoder",
    "TextFunction",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
