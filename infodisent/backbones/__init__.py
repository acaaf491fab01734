"""What turns a model into a feature map: its layout, its prefix tokens, its input."""
