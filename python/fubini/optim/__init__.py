"""The optimizers: sources of metrics, policies, steps, histories."""
