"""Request traces of Alibaba's Bailian service."""
