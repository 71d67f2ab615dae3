"""Which data module an agent is trained with, for those that it is not."""

from rl_lightning.core.protocols import Trainee

# By what an agent learns from.
_MODULES = {
    "rollouts": "RolloutDataModule",
    "replay": "ReplayDataModule",
    "recordings": "OfflineDataModule",
    "preferences": "PreferenceDataModule",
    "completions": "PromptDataModule",
    "demonstrations": "CompletionDataModule",
    "pairs": "CompletionDataModule",
}


def own_module(agent: Trainee) -> str:
    """The name of an agent's own data module."""
    return _MODULES[agent.learns_from[0]]
