"""The plug-in does nothing unless it is told to, and ends a server in which it cannot work."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest

from marsbench.engine.sglang import plugin
from marsbench.errors import EngineError

TOLD = '{"system": "mars", "profile": "tiny-cpu"}'


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("MARSBENCH_SGLANG", "MARSBENCH_SYSTEM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"MARSBENCH_SYSTEM": "mars"}, True),
        ({"MARSBENCH_SYSTEM": "mars", "MARSBENCH_SGLANG": ""}, False),
        ({"MARSBENCH_SGLANG": TOLD}, True),
    ],
)
def test_it_is_switched_on_and_off_by_variables(monkeypatch, variables, on):
    """The environment's variables say whether the plug-in does anything."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert plugin.switched_on() is on


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "MARSBENCH_SGLANG: not JSON"),
        ('{"system": "mars"}', "MARSBENCH_SGLANG.profile is missing"),
        (TOLD.replace("mars", "marz"), "marz"),
        (TOLD.replace("}", ', "sede": 3}'), "did you mean 'seed'"),
    ],
)
def test_what_cannot_work_ends_the_server(monkeypatch, given, said):
    """In one line, before a model is loaded, and not as an exception, which SGLang would only log."""
    monkeypatch.delenv("MARSBENCH_PROFILE", raising=False)
    monkeypatch.setenv("MARSBENCH_SGLANG", given)
    with pytest.raises(SystemExit, match=said) as ended:
        plugin.activate()
    assert "\n" not in str(ended.value)


def test_processes_without_a_scheduler_are_left_alone(monkeypatch):
    """SGLang loads plug-ins in its API and detokenizer processes too."""
    monkeypatch.setenv("MARSBENCH_SGLANG", TOLD)
    monkeypatch.setattr(plugin, "require_sglang", lambda _who: "0.5.23")
    monkeypatch.delitem(sys.modules, plugin.MODULE, raising=False)
    plugin.activate()
    assert plugin.MODULE not in sys.modules


def test_another_version_ends_the_server(monkeypatch):
    """A release that is not supported ends the server and is named beside those that are."""
    monkeypatch.setenv("MARSBENCH_SGLANG", TOLD)
    monkeypatch.setitem(sys.modules, plugin.MODULE, ModuleType(plugin.MODULE))
    monkeypatch.setattr("marsbench.engine.sglang.runtime.installed_version", lambda: "0.9.0")
    with pytest.raises(SystemExit, match=r"the plug-in supports sglang==.*, installed is 0\.9\.0"):
        plugin.activate()


@pytest.mark.sglang
@pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed")
@pytest.mark.filterwarnings(
    "ignore"
)  # what SGLang and PyTorch say when they are first imported is not ours
class TestInstalled:
    def test_the_scheduler_of_a_server_is_ours(self, monkeypatch):
        """SGLang's own registry puts it there; a second announcement changes nothing."""
        import sglang.srt.managers.scheduler as module

        stock = module.Scheduler
        monkeypatch.setenv("MARSBENCH_SGLANG", TOLD)
        monkeypatch.setattr(module, "Scheduler", stock)  # put back afterwards
        from sglang.srt.plugins.hook_registry import HookRegistry

        try:
            plugin.activate()
            assert issubclass(module.Scheduler, stock)
            assert module.Scheduler.__name__ == "ServedSglangScheduler"
            plugin.activate()
            assert module.Scheduler.__mro__[1] is stock
        finally:
            HookRegistry.reset()

    def test_a_hook_that_finds_nothing_to_go_around(self):
        """A method that SGLang no longer has is named, with the script that looks for all of them."""
        from marsbench.engine.sglang.hooks import wrap

        with pytest.raises(EngineError, match=r"has no calc_priority .*check_sglang\.py"):
            wrap(SimpleNamespace(), "calc_priority", lambda method: method())

    def test_hooks_come_out_again(self):
        """Undoing a hook leaves the object as it was."""
        from marsbench.engine.sglang.hooks import wrap

        class Owner:
            def answer(self):
                return 1

        owner = Owner()
        undo = wrap(owner, "answer", lambda method: method() + 1)
        assert owner.answer() == 2
        undo()
        assert owner.answer() == 1
        assert not vars(owner)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"tp_size": 2}, "--tp-size 2"),
            ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
            ({"disable_radix_cache": True}, "--disable-radix-cache"),
        ],
    )
    def test_servers_in_which_policies_would_not_hold_are_refused(self, flags, said):
        """Several ranks, and features that hold memory by their own rules, are refused by name."""
        from marsbench.engine.sglang import served

        neutral = dict.fromkeys(served.ALONE, 1) | dict.fromkeys(served.UNTRIED, False)
        neutral |= {"disaggregation_mode": "null", "disable_radix_cache": False}
        served.check(SimpleNamespace(**neutral))
        with pytest.raises(EngineError, match=said):
            served.check(SimpleNamespace(**neutral | flags))
