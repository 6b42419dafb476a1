"""The check of an SGLang release finds what moved: names, parameters, and how it behaves."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "scripts" / "check_sglang.py"
with_sglang = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_sglang", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_sglang"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_sglang"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("json", "dumps", ("obj", "anything")), None),  # it takes any keyword
        (("textwrap", "dedent", ("text",)), None),
        (("textwrap", "dedent", ("text", "width")), "takes no width any more"),
        (("textwrap", "gone"), "textwrap.gone: not found"),
        (("sglang.nowhere.Thing", "name"), "not found"),
    ],
)
def test_a_name_or_parameter_that_moved_is_named(check, place, said):
    """What is where it was is passed over; a name or parameter that moved is said."""
    found = check.moved(check.HookedName(*place))
    assert found is None if said is None else said in found


class TestInstalled:
    pytestmark = with_sglang

    def test_the_supported_release_passes(self, check, capsys):
        """The release that is supported has every name, and its cells agree."""
        assert check.main(1) == 0
        said = capsys.readouterr().out
        assert f"{len(check.PLACES):>4} of {len(check.PLACES):>4} are where they were" in said
        assert "policies, twice                 1 of    1 cells agree" in said

    def test_a_release_that_counts_otherwise_fails(self, check, capsys, monkeypatch):
        """Its tree says that it could drop one token more than it has."""
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        stock = UnifiedRadixCache.evictable_size
        monkeypatch.setattr(UnifiedRadixCache, "evictable_size", lambda self: stock(self) + 1)
        assert check.main(1) == 1
        assert "AssertionError in SglangCore.check_books" in capsys.readouterr().out

    def test_a_release_without_a_hooked_name_fails(self, check, capsys, monkeypatch):
        """What has gone is named, and so is that policies cannot be put in."""
        from sglang.srt.managers.schedule_policy import SchedulePolicy

        monkeypatch.delattr(SchedulePolicy, "waiting_queue_prefix_matched")
        assert check.main(1) == 1
        said = capsys.readouterr().out
        assert "SchedulePolicy.waiting_queue_prefix_matched: not found" in said
