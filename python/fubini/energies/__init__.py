"""Circuits without data whose one expectation value is to be minimised: ground states, QAOA, state preparation."""
