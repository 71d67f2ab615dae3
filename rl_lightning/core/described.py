"""Objects that checkpoints can say, and from there build again."""

from typing import Any

from rl_lightning.core.arguments import check_names
from rl_lightning.core.signatures import Signature, signature_of


class Described:
    """An object that remembers the arguments it was built with.

    A checkpoint that is told of one holds its class's name and these arguments, as far as they are
    plain data, functions with an import path, or such objects in their turn.
    """

    __signature__ = Signature()
    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_names(cls, kwargs)
        made = super().__new__(cls)
        made._call = args, kwargs
        return made

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was built with, by name; what was left out is left out."""
        args, kwargs = self._call
        signature = signature_of(type(self))
        bound = signature.bind(*args, **kwargs).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                bound |= bound.pop(name, {})
        return bound
