"""The `triton` backend: the kernels of ``infodisent.kernels``, loaded when first asked for."""
