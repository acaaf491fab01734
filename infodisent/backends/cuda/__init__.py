"""The `cuda` backend: hand-written kernels for Hopper GPUs (``csrc/sm90``)."""
