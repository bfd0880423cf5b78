"""The metric functions of QNodes, layers and circuits, and what they show."""
