"""``report.html``: one page that opens offline and holds its data, its figures and their script."""

from __future__ import annotations

from marsbench.report.page.render import Section, page

__all__ = ["Section", "page"]
