"""Switching to eval mode and back leaves everything as it was, and asks who has a say."""

import pytest
import torch
from torch import nn

from rl_lightning.nn.modes import EvalMode


class Stranger(nn.Module):
    """Does something at the switch, as adapters do that merge their weights."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.told = []

    def train(self, mode=True):
        self.told.append(mode)
        return super().train(mode)


def modes(module):
    return [one.training for one in module.modules()]


def test_all_is_in_eval_mode_and_then_as_it_was():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(0.5)))
    module[1].eval()  # on purpose
    before = modes(module)
    assert before.count(False) == 1
    mode = EvalMode(module)
    for _ in range(2):
        with mode:
            assert not any(modes(module))
            x = torch.ones(3, 2)
            assert torch.equal(module(x), module(x))
            with mode:
                assert not any(modes(module))
            assert not any(modes(module))
        assert modes(module) == before


def test_after_an_error_too():
    module = nn.Sequential(nn.Dropout(0.5))
    mode = EvalMode(module)
    with pytest.raises(ZeroDivisionError), mode:
        raise ZeroDivisionError
    assert all(modes(module))
    module.eval()
    with mode:
        pass
    assert not any(modes(module))


def test_a_train_of_its_own_is_asked():
    module = nn.Sequential(nn.Linear(1, 1), Stranger())
    mode = EvalMode(module)
    with mode:
        assert not any(modes(module))
    assert all(modes(module))
    assert module[1].told == [False, True]
    module.eval()
    with mode:
        pass
    assert module[1].told == [False, True, False]  # `module.eval()`; in eval mode it stays there


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripts_are_switched():
    module = nn.Sequential(torch.jit.script(nn.Dropout(0.5)))
    x = torch.ones(64)
    with EvalMode(module):
        assert torch.equal(module(x), x)
    assert not torch.equal(module(x), x)


def test_what_is_on_purpose_below_a_train_of_its_own_stays_too():
    module = nn.Sequential(Stranger())
    module[0].inner.eval()
    with EvalMode(module):
        assert not any(modes(module))
    assert module[0].training
    assert not module[0].inner.training


def test_a_train_that_fails_leaves_all_as_it_was():
    class Fails(nn.Module):
        def train(self, mode=True):
            if not mode:
                raise ZeroDivisionError
            return super().train(mode)

    module = nn.Sequential(Stranger(), Fails(), nn.Dropout(0.5))
    with pytest.raises(ZeroDivisionError), EvalMode(module):
        pass
    assert all(modes(module))


def test_a_train_set_on_a_module_is_asked():
    module = nn.Sequential(nn.Dropout(0.5))
    told = []

    def train(mode=True):
        told.append(mode)
        return nn.Module.train(module[0], mode)

    module[0].train = train
    with EvalMode(module):
        assert not module[0].training
    assert told == [False, True]
