"""Acting in eval mode, in between of learning in training mode."""

from types import TracebackType

from torch import nn


class EvalMode:
    """A context in which a module is in eval mode, and after which all is as it was.

    `module.eval()` and `module.train()` visit every module within with a function call, which for a
    small network takes as long as acting; and afterwards all would be in training mode, whatever
    had been put into eval mode on purpose. Here a list is made once, of modules that have no say
    in it: `nn.Module.train` would only set their `training`. Modules with a `train` of their own
    are asked by it.

    Args:
        module: It, with all it consists of now.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        modules = list(module.modules())
        # What is compiled to a script keeps the flag elsewhere.
        self._asked = [
            one
            for one in modules
            if type(one).train is not nn.Module.train
            or "train" in vars(one)
            or "training" not in vars(one)
        ]
        asked = set(map(id, self._asked))
        self._plain = [vars(one) for one in modules if id(one) not in asked]
        self._switched: list[tuple[list[nn.Module], list[tuple[nn.Module, bool]], list[dict]]] = []

    def __enter__(self) -> None:
        plain = [one for one in self._plain if one["training"]]
        asked = [one for one in self._asked if one.training] if self._asked else self._asked
        below = [(m, m.training) for one in asked for m in one.modules()]
        self._switched.append((asked, below, plain))
        try:
            for one in asked:
                one.train(False)
        except BaseException:
            self._back()
            raise
        for one in plain:
            one["training"] = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._back()

    def _back(self) -> None:
        asked, below, plain = self._switched.pop()
        for one in asked:
            one.train(True)
        for one, training in below:  # which `train` may have taken along
            if one.training != training:
                one.training = training
        for one in plain:
            one["training"] = True
