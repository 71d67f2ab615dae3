"""What a labeller has said in a run: each question once, and after resuming the same."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.rewards.labels import Labeller
from rl_lightning.rewards.labels.questions import digest

Answer = str | float


class Asked:
    """Asks a labeller, and remembers its answers, in checkpoints too.

    So a resumed run is the uninterrupted one even where the labeller would say something else
    today. A question without an answer is asked again when it comes again.

    Args:
        labeller: Who is asked.
        written: Whether answers are texts; else numbers.
        remember: Most answers remembered.

    Raises:
        ConfigurationError: If the labeller is none, or does not answer so.
    """

    def __init__(self, labeller: Labeller, written: bool, remember: int) -> None:
        if not isinstance(labeller, Labeller):
            raise ConfigurationError(
                f"data.rewards: labeller must be a Labeller, such as RuleLabeller or "
                f"EndpointLabeller, not {shortened(repr(labeller), 80)}"
            )
        if written and not labeller.writes:
            labeller.texts([])  # says why not
        labeller.progress = False  # a bar of every step's questions would be none
        self.labeller, self.written = labeller, written
        self.remember = whole("data.rewards: remember", remember, 0)
        self.known: dict[str, Answer] = {}
        self.count = self.unanswered = 0

    def __call__(self, questions: Sequence[str]) -> list[Any]:
        """Answers in the questions' order; None where there is none.

        Raises:
            RunError: See `Labeller`.
        """
        keys = [digest(question) for question in questions]
        pairs = zip(keys, questions, strict=True)
        new = {key: question for key, question in pairs if key not in self.known}
        fresh: dict[str, Answer | None] = {}
        if new:
            ask = self.labeller.texts if self.written else self.labeller
            fresh.update(zip(new, ask(list(new.values())), strict=True))
            self.count += len(new)
        for key, answer in fresh.items():
            if answer is None:
                self.unanswered += 1
            elif len(self.known) < self.remember:
                self.known[key] = answer
        return [self.known[key] if key in self.known else fresh[key] for key in keys]

    def metrics(self) -> dict[str, float]:
        """Since the last call: questions that the labeller was asked, and those without answer."""
        out = {"asked": float(self.count), "unanswered": float(self.unanswered)}
        self.count = self.unanswered = 0
        return out

    def state_dict(self) -> dict[str, Any]:
        """The answers, and the counts; of the questions and of whom they were for digests only."""
        return {
            "labeller": digest(self.labeller.identity()),
            "keys": list(self.known),
            "answers": list(self.known.values()),
            "counts": [self.count, self.unanswered],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the answers of another labeller are left, with a warning."""
        self.known.clear()
        self.count, self.unanswered = state["counts"]
        if state["labeller"] != digest(self.labeller.identity()):
            warnings.warn(
                "data.rewards: the answers in the checkpoint are those of another labeller, or to "
                "other words: starting with none",
                stacklevel=2,
            )
            return
        self.known.update(zip(state["keys"], state["answers"], strict=True))
