"""Regularised symmetric systems in batches: methods, damping, derivatives of solutions."""
