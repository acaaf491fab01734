"""The `sparse` backend: PyTorch underneath, no dense gradient, one file per operator's stem."""
