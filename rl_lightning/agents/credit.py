"""What the tokens of completions and conversations are credited with."""

from typing import Literal, get_args

from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.token_batches import flat
from rl_lightning.core.errors import ConfigurationError, check_one_of
from rl_lightning.maths.token_advantages import token_rewards

Credit = Literal["episode", "turn"]


def check_credit(credit: Credit, gamma: float) -> None:
    """Refuse a credit that there is not, and a discount that would do nothing.

    Raises:
        ConfigurationError: That says which.
    """
    check_one_of("model.credit", credit, get_args(Credit))
    if credit == "episode" and gamma != 1.0:
        raise ConfigurationError(
            f"model.gamma: {gamma} discounts what later turns are paid; give credit: turn with it, "
            "or leave it out"
        )


def scores(batch: TensorDict) -> Tensor:
    """What completions are worth: `[P · G, T]` where single tokens are paid for, else `[P · G]`."""
    return flat(batch["token_reward" if "token_reward" in batch.keys() else "reward"])  # noqa: SIM118


def token_scores(batch: TensorDict) -> Tensor:
    """What is paid for each token, `[P · G, T]`: where nobody says, the last own one has it all."""
    return token_rewards(scores(batch), flat(batch["own"]))
