"""OpenHands V1 (software-agent SDK): conversation directories and benchmark rows."""
