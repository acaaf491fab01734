"""Polynomials in place of the exponential: plans and coefficients."""
