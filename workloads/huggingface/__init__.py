"""Hugging Face datasets whose rows are in one of the known formats."""
