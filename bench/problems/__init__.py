"""Training problems of ``bench/training.py``."""
