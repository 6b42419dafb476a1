"""What requests and replies say: who asks, the prompt, the reply, the class of a tool call."""
