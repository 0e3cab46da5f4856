"""Is diffusion doing anything here: a finished training held against its own controls."""
