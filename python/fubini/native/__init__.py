"""The native engine: compiled circuits, their metrics, and derivatives by whatever the angles depend on."""
