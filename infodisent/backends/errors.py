"""The error of a backend that was asked for and cannot serve."""


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot serve this call."""
