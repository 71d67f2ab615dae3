"""Having questions answered, and checking that answers are labels."""

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.data.preferences.questions import Questions, Source
from rl_lightning.rewards.labels import Labeller


def answered(
    source: Source, questions: Questions, labeller: Labeller | None, both_orders: bool
) -> np.ndarray:
    """Labels of all questions `[P]`, NaN where there is no answer.

    Args:
        source: Of their items.
        questions: Of which those without label are asked.
        labeller: Answers; None for nobody.
        both_orders: Ask about each pair both ways round, and take the mean.

    Raises:
        ConfigurationError: If nobody is there to answer.
    """
    labels = questions.labels.copy()
    open_ones = np.flatnonzero(np.isnan(labels))
    if not len(open_ones):
        return labels
    if labeller is None:
        raise ConfigurationError(
            f"data.labeller: {len(open_ones)} questions have no label and nobody answers them; "
            "give a labeller, such as {class_path: rl_lightning.rewards.RuleLabeller, init_args: "
            "{function: my_module.my_function}} (a checkpoint does not say whom to ask)"
        )
    texts = [tuple(source.text(int(i)) for i in questions.items[row]) for row in open_ones]
    if questions.items.shape[1] == 1:
        labels[open_ones] = _numbers(labeller([text for (text,) in texts]))
        return labels
    pairs: list[tuple[str, str]] = [(a, b) for a, b in texts]
    if not both_orders:
        labels[open_ones] = _numbers(labeller(pairs))
        return labels
    answers = _numbers(labeller([*pairs, *((b, a) for a, b in pairs)]))
    there, back = answers[: len(pairs)], answers[len(pairs) :]
    labels[open_ones] = (there + 1.0 - back) / 2.0
    return labels


def checked(questions: Questions, labels: np.ndarray, objective: str, what: str) -> Questions:
    """The questions that have an answer, if answers are labels of the objective.

    Args:
        questions: All of them.
        labels: Their answers `[P]`, NaN for none.
        objective: Of the model.
        what: Whose they are, for messages.

    Raises:
        ConfigurationError: If a label is out of range, or if there is none at all.
    """
    known = Questions(questions.items, labels).known()
    wrong = known.labels[(known.labels < 0) | (known.labels > 1)]
    if len(wrong) and objective != "regression":
        meaning = "0 (the first is better) to 1 (the second is), 0.5 for a tie"
        raise ConfigurationError(
            f"data.labeller: {wrong[0]:g} is no label for model.objective: {objective}; it must "
            f"be {meaning if objective == 'preferences' else 'between 0 and 1'}"
        )
    if len(questions) and not len(known):
        raise ConfigurationError(f"data.labeller: none of {len(questions)} {what} has an answer")
    if missing := len(questions) - len(known):
        rank_zero_warn(f"{missing} of {len(questions)} {what} have no answer and are left out")
    return known


def _numbers(answers: list[float | None]) -> np.ndarray:
    return np.array([np.nan if a is None else a for a in answers], np.float64)
