"""Images in, and their feature maps stored."""
