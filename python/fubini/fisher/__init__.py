"""The Fisher information of whole models: what a loss says about its likelihood, and blocks of it."""
