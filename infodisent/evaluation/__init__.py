"""Figures of merit of a head."""
