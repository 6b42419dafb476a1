"""What others may watch: the gateway's own metrics, and its event stream over ZeroMQ."""
