"""The inference servers behind the gateway, and the way of a turn there and back."""
