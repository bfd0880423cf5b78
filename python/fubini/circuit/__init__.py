"""Quantum functions as PennyLane records them: gates, words, angles, and how weights enter them."""
