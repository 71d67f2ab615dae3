"""Modules that have moved are still found, with a word about where they are now."""

import importlib
import subprocess
import sys

import pytest

from rl_lightning.core.errors import FormerWarning
from rl_lightning.core.former import FORMER


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_leads_to_the_module_of_today(former):
    sys.modules.pop(former, None)
    with pytest.warns(FormerWarning, match=f"{former} has moved: import {FORMER[former]};"):
        found = importlib.import_module(former)
    assert found is importlib.import_module(FORMER[former])
    assert found.__name__ == FORMER[former] == found.__spec__.name
    sys.modules.pop(former)


def test_the_library_itself_uses_no_former_name():
    code = "import pkgutil, importlib, warnings, rl_lightning as r\n"
    code += "warnings.filterwarnings('error', 'rl_lightning.* has moved')\n"
    code += "for m in pkgutil.walk_packages(r.__path__, 'rl_lightning.'):\n"
    code += "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.parametrize("name", ["ActorCritic", "ContinuousNetwork", "QNetwork", "pick"])
def test_a_former_attribute_leads_to_what_it_was(name):
    from rl_lightning import nn, policies

    with pytest.warns(FormerWarning, match=f"rl_lightning.nn.{name} has moved: import it"):
        assert getattr(nn, name) is getattr(policies, name)
    with pytest.raises(AttributeError, match="has no attribute 'QNet'"):
        _ = nn.QNet
