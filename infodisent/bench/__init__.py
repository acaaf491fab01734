"""Comparisons: one table of map sizes, one way to time, the peers, and the cases made of them."""
