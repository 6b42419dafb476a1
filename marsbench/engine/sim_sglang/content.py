"""What the tokens of a turn are, without the tokens: whose they are, from which position on.

Tokens of a turn that no earlier turn had get a *serial number* of their own, those of a shared
prefix the prefix's. A later turn repeats the beginning of an earlier one of its session, or of its
prefix, and never anything else. So a token is told by its position and its serial number, and two
contexts that agree in the serial number at a position agree in all before it.
"""

from __future__ import annotations

from bisect import bisect_right

from marsbench.engine.base import Request


class TokenRuns:
    """The tokens of one turn. Immutable; how many there will be is not written here."""

    __slots__ = ("_serials", "_starts")

    def __init__(self, starts: list[int], serials: list[int]) -> None:
        self._starts = starts
        """Positions from which on a serial number holds, ascending, the first of them 0."""
        self._serials = serials

    def at(self, position: int) -> int:
        """Return the serial number at a position."""
        return self._serials[bisect_right(self._starts, position) - 1]

    def agrees(self, other: TokenRuns, low: int, high: int) -> int:
        """Return how many leading tokens, at most ``high``, two contents share that agree in ``low``."""
        if low < high and self.at(high - 1) == other.at(high - 1):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if self.at(middle - 1) == other.at(middle - 1):
                low = middle
            else:
                high = middle
        return low

    def continued(self, shared: int, reused: int, prefix: int, serial: int) -> TokenRuns:
        """Return the content that has ``shared`` tokens of a prefix, then this one's up to
        ``reused``, then new ones.
        """
        starts, serials = ([0], [prefix]) if shared else ([], [])
        if reused > shared:
            first = bisect_right(self._starts, shared) - 1
            last = bisect_right(self._starts, reused - 1)
            starts += [shared, *self._starts[first + 1 : last]]
            serials += self._serials[first:last]
        return TokenRuns([*starts, reused], [*serials, serial])


NOTHING = TokenRuns([0], [0])


class Contents:
    """Tells the content of every turn; remembers each session's last."""

    def __init__(self) -> None:
        self._last: dict[int, TokenRuns] = {}
        self._serial = 0

    def of(self, request: Request) -> TokenRuns:
        """Return the content of a session's next turn."""
        reused = request.reused_tokens
        shared = min(request.prefix_tokens, reused) if request.prefix_id >= 0 else 0
        self._serial += 1
        assert reused == shared or request.session in self._last, request.session
        before = self._last.get(request.session, NOTHING)
        content = before.continued(shared, reused, -1 - request.prefix_id, self._serial)
        self._last[request.session] = content
        return content

    def forget(self, session: int) -> None:
        """Forget a session of which no further turn will come."""
        self._last.pop(session, None)
