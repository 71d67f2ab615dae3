"""Whether a policy over tokens has anything left to try, or to learn from, and of its own."""

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

LITTLE_ENTROPY = 0.01  # nats a token
FEW_SPREAD = 0.95  # share of groups without any
LARGE_GAP = 0.2  # nats a token


class CollapseModule(L.LightningModule):
    """A module that warns when what it logs shows that it does not explore any more, or learns from
    what another model has written."""

    _warned: set[str]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._warned.clear()

    def on_train_epoch_end(self) -> None:
        """Warn, once a fit, of a policy that has nothing left to try or to learn from."""
        logged = self.trainer.callback_metrics
        entropy, equal = logged.get("policy/entropy"), logged.get("reward/groups_without_spread")
        imitated, told = logged.get("policy/imitated"), self._warned
        gap = logged.get("policy/sampler_gap")
        if gap is not None and float(gap) > LARGE_GAP and "gap" not in told:
            told.add("gap")
            rank_zero_warn(
                "completions come from another model than the one that learns from them: their "
                f"log-probabilities are {float(gap):.2g} nats a token apart (policy/sampler_gap). "
                "Recurrent models read padding in front of a prompt as text: give data.generator a "
                "TransformersGenerator with batch_size: 1, which needs none, prompts of equal "
                "length, or a model with attention. Otherwise it is a defect: please report it"
            )
        if imitated is not None and float(imitated) == 0.0:
            entropy = None  # of nothing
            if "imitated" not in told:
                told.add("imitated")
                rank_zero_warn(
                    "in the last step no completion was imitated, because none reached "
                    "model.min_reward: lower it, make the task easier, or warm up by "
                    "CompletionDataModule"
                )
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
