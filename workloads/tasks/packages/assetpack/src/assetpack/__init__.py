"""Bundles files into one compressed archive."""

from assetpack.bundle import pack, unpack
from assetpack.matches import compress, expand

__all__ = ["compress", "expand", "pack", "unpack"]
