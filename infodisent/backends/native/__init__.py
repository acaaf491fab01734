"""The `native` backend: compiled code (``csrc/cpu``) for CPUs, one file per operator's stem."""
