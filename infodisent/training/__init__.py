"""From images to a trained head: fit, checkpoints, runs."""
