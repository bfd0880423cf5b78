"""Compiles quantum functions: what they compute, what they read, and the circuit that takes their place."""
