"""Heads: one file a method, on the protocol of `infodisent.methods.base`."""
