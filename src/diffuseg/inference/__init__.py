"""From a checkpoint and an image to a mask with its uncertainty."""
