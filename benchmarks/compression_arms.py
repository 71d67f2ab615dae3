"""Ways of making policies smaller that `compression.py` compares.

Each is `compress` with some arguments, or training on (TUNE), step after step; from the policy
itself, or (STUDENT) from one that it has taught.
"""

from pathlib import Path

Way = tuple[str, ...]
TUNE, STUDENT = "tune", "student"
SHARES = (50, 80, 90)  # per cent


def nodes(share: int) -> str:
    return f"prune-nodes --share {share / 100}"


def weights(share: int) -> str:
    return f"prune-weights --share {share / 100}"


STUDENTS: dict[str, Way] = {
    "distilled": (STUDENT,),
    "distilled, int8": (STUDENT, "quantise --bits 8"),
    "distilled, int4": (STUDENT, "quantise --bits 4"),
}
ARMS: dict[str, Way] = {
    "full": (),
    **{f"weights {share} %": (weights(share),) for share in SHARES},
    **{f"weights {share} %, tuned": (weights(share), TUNE) for share in SHARES},
    **{f"nodes {share} %": (nodes(share),) for share in SHARES},
    **{f"nodes {share} %, tuned": (nodes(share), TUNE) for share in SHARES},
    "int8": ("quantise --bits 8",),
    "int4": ("quantise --bits 4",),
    "ternary": ("quantise --bits 2",),
    "binary": ("quantise --bits 1",),
    "int4, trained": ("quantise-aware --bits 4", TUNE, "harden"),
    "ternary, trained": ("quantise-aware --bits 2", TUNE, "harden"),
    "binary, trained": ("quantise-aware --bits 1", TUNE, "harden"),
    "nodes 50 %, tuned, int8": (nodes(50), TUNE, "quantise --bits 8"),
    **STUDENTS,
}

# Of learned values: the layer whose rounding changes which of them is the highest can be left
# alone. Names are of a network of two hidden layers that is not dueling.
BUT_THE_LAST = "policy.advantage.0,policy.advantage.2"
VALUE_ARMS: dict[str, Way] = {
    "full": (),
    **{f"nodes {share} %": (nodes(share),) for share in (50, 80)},
    "nodes 50 %, tuned": (nodes(50), TUNE),
    "int8": ("quantise --bits 8",),
    "int8 but for the last layer": (f"quantise --bits 8 --layers {BUT_THE_LAST}",),
    "int8 in groups of 8": ("quantise --bits 8 --group_size 8",),
    "int8, trained": ("quantise-aware --bits 8", TUNE, "harden"),
    "int4": ("quantise --bits 4",),
    "ternary": ("quantise --bits 2",),
    "ternary, trained": ("quantise-aware --bits 2", TUNE, "harden"),
    **STUDENTS,
}

# Of policies that read through a frozen language model of two layers: that is what is made smaller,
# and TUNE trains what reads its features.
MODEL = "--part language-model"
CUT = "cut-vocabulary"
INT8, INT4 = f"quantise --bits 8 {MODEL}", f"quantise --bits 4 --group_size 32 {MODEL}"
HEADS, LAYERS = "prune-heads --share 0.5", "prune-layers --keep_layers 0"
CUT_ARMS: dict[str, Way] = {
    "": (),
    **{f", weights {share} %": (f"{weights(share)} {MODEL}",) for share in SHARES},
    ", weights 80 %, tuned": (f"{weights(80)} {MODEL}", TUNE),
    **{f", nodes {share} %": (f"{nodes(share)} {MODEL}",) for share in SHARES},
    **{f", nodes {share} %, tuned": (f"{nodes(share)} {MODEL}", TUNE) for share in SHARES},
    ", half the heads": (HEADS,),
    ", half the heads, tuned": (HEADS, TUNE),
    ", half the layers": (LAYERS,),
    ", half the layers, tuned": (LAYERS, TUNE),
    ", all int8": (INT8, "quantise --bits 8"),
    ", int4 in groups, rest int8": (INT4, "quantise --bits 8"),
    ", int4 in groups, tuned, rest int8": (INT4, TUNE, "quantise --bits 8"),
    ", binary": (f"quantise --bits 1 {MODEL}",),
    ", binary, tuned": (f"quantise --bits 1 {MODEL}", TUNE),
    ", nodes 50 %, tuned, all int8": (f"{nodes(50)} {MODEL}", TUNE, INT8, "quantise --bits 8"),
}
TEXT_ARMS: dict[str, Way] = {
    "full": (),
    "int8 of the language model": (INT8,),
    **{f"vocabulary cut{name}": (CUT, *way) for name, way in CUT_ARMS.items()},
    **STUDENTS,
}


def arms_of(config: str, student: str | None) -> dict[str, Way]:
    """The ways for the policy of a configuration."""
    text = Path(config).read_text()
    arms = TEXT_ARMS if "LLMEncoder" in text else VALUE_ARMS if "QNetwork" in text else ARMS
    return {name: way for name, way in arms.items() if student or STUDENT not in way}
