"""Sorts and joins tables that do not fit into memory."""

from bulksort.external import sort_external
from bulksort.join import merge_join
from bulksort.summary import Summary

__all__ = ["Summary", "merge_join", "sort_external"]
