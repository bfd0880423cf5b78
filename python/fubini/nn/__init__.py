"""Circuits in torch: layers, compiled QNodes, and their passes on the engine and on devices."""
