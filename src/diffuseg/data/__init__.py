"""From dataset folders to batches on the grid of a plan, and back to the native geometry."""
