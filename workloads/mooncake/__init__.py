"""Mooncake request traces (FAST'25): prompt lengths and hashes of 512-token blocks."""
