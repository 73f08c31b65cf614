"""Faults that a campaign makes, and what it makes them in."""
