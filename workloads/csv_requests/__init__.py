"""Tables of requests as CSV."""
