"""What a TextWorld player sees, in plain sentences.

The same state is always the same text, in a fixed order and without the flourishes of TextWorld's
own descriptions: so texts repeat, and a language model need not read any of them twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from rl_lightning.core.errors import check_one_of

Goal = Literal["steps", "last", "story"]
GOALS = get_args(Goal)


def tell_state(facts: Iterable[Any], infos: Mapping[str, Any]) -> str:
    """The room that the player is in, what is to be seen there, its exits, and what is carried.

    Args:
        facts: Propositions that are true.
        infos: Of each entity, with its name, by identity.
    """
    true = {(fact.name, *(v.name for v in fact.arguments)) for fact in facts}
    here = next(f[2] for f in true if f[:2] == ("at", "P"))
    states = {f[1]: f[0] for f in true if f[0] in ("open", "closed", "locked")}

    def named(key: str) -> str:
        return f"{states[key]} {infos[key].name}" if key in states else infos[key].name

    def listed(keys: Sequence[str]) -> str:
        names = [with_article(named(key), infos[key].indefinite) for key in by_name(keys)]
        return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])

    def by_name(keys: Iterable[str]) -> list[str]:
        return sorted(keys, key=lambda key: (infos[key].name, key))

    things = [f[1] for f in true if f[0] == "at" and f[1] != "P" and f[2] == here]
    sentences = [f"You are in the {infos[here].name}."]
    if things:
        sentences.append(f"You see {listed(things)}.")
    for place in by_name(things):
        if states.get(place, "open") == "open" and infos[place].type in ("c", "s"):
            inside = [f[1] for f in true if f[0] in ("in", "on") and f[2] == place]
            sentences.append(
                f"The {infos[place].name} holds {listed(inside) if inside else 'nothing'}."
            )
    doors = {f[3]: f[2] for f in true if f[0] == "link" and f[1] == here}  # room → door
    free = []
    for direction in ("north", "east", "south", "west"):
        for room in sorted(f[1] for f in true if f[0] == f"{direction}_of" and f[2] == here):
            if room in doors:
                door = with_article(named(doors[room]), infos[doors[room]].indefinite)
                sentences.append(f"{door[:1].upper()}{door[1:]} leads {direction}.")
            elif ("free", here, room) in true:
                free.append(direction)
    if free:
        sentences.append(f"You can go {' or '.join(free)}.")
    carried = [f[1] for f in true if f[0] == "in" and f[2] == "I"]
    sentences.append(f"You carry {listed(carried) if carried else 'nothing'}.")
    return " ".join(sentences)


def with_article(name: str, article: str | None = None) -> str:
    """A name with its own indefinite article, or with "a" or "an" by its first letter."""
    return f"{article or ('an' if name[:1].lower() in 'aeiou' else 'a')} {name}"


def tell_goal(game: Any, goal: Goal) -> str:
    """What is to be done.

    Args:
        game: A `textworld.Game`.
        goal: In which words, see `TextWorldGame`.
    """
    check_one_of("goal", goal, GOALS)
    if goal == "story":
        return " ".join(game.objective.split())
    steps = game.walkthrough or []
    text = ", then ".join(steps if goal == "steps" else steps[-1:])
    return f"{text[:1].upper()}{text[1:]}."
