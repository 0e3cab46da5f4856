"""Is diffusion doing anything here: a finished training compared with its own controls."""
