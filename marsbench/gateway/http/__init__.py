"""The HTTP side: the server, the gate every request passes, and the endpoints."""
