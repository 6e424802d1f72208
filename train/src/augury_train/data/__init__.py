"""Images: where they come from, what a pipeline makes of them, and how they reach the training."""
