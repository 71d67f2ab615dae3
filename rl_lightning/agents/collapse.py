"""Whether a policy over tokens has anything left to try, or to learn from."""

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

LITTLE_ENTROPY = 0.01  # nats a token
FEW_SPREAD = 0.95  # share of groups without any


class CollapseModule(L.LightningModule):
    """A module that warns when what it logs shows that it does not explore any more."""

    _warned: set[str]

    def on_train_epoch_end(self) -> None:
        """Warn, once, of a policy that has nothing left to try."""
        logged = self.trainer.callback_metrics
        entropy, equal = logged.get("policy/entropy"), logged.get("reward/groups_without_spread")
        told = self._warned
        if entropy is not None and float(entropy) < LITTLE_ENTROPY and "entropy" not in told:
            told.add("entropy")
            rank_zero_warn(
                f"the policy is nearly deterministic ({float(entropy):.2g} nats a token): it tries "
                "nothing new. Lower the learning rate or the passes, raise clip_high above "
                "clip_low, give a kl_coef, or begin from an earlier checkpoint"
            )
        if equal is not None and float(equal) > FEW_SPREAD and "spread" not in told:
            told.add("spread")
            rank_zero_warn(
                f"in {float(equal):.0%} of the groups all completions have the same reward, from "
                "which nothing is learned: if reward/total is low, make the task easier, the "
                "reward finer or data.group_size larger, or warm up by SFT; if it is high, the "
                "task is solved"
            )
