"""The loop, its checkpoints and what it shows."""
