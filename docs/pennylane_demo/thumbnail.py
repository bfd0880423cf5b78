"""Draws the demonstration's thumbnail: ``python docs/pennylane_demo/thumbnail.py thumbnail.png``.

Both metrics of one circuit, the block-diagonal one in front of the full one.
"""

import sys

import matplotlib as mpl
import pennylane as qml
import torch

import fubini

mpl.use("agg")
import matplotlib.pyplot as plt


@qml.qnode(qml.device("default.qubit", wires=4))
def circuit(weights):
    """Return an expectation value of three entangling layers."""
    qml.StronglyEntanglingLayers(weights, wires=range(4))
    return qml.expval(qml.Z(0))


def draw(path: str) -> None:
    """Draw the picture.

    Args:
        path: The file, 1280 x 720 pixels.
    """
    torch.manual_seed(0)
    weights = torch.rand(3, 4, 3, dtype=torch.float64, requires_grad=True)
    figure = plt.figure(figsize=(12.8, 7.2), facecolor="#1b1f3b")
    for approx, place in (
        (None, (0.09, 0.14, 0.405, 0.72)),
        ("block-diag", (0.505, 0.14, 0.405, 0.72)),
    ):
        axis = figure.add_axes(place)
        metric = fubini.metric_tensor(circuit, approx=approx)(weights).detach().reshape(36, 36)
        axis.imshow(metric, vmin=-0.25, vmax=0.25, cmap="RdBu")
        axis.set_axis_off()
    figure.savefig(path, dpi=100, facecolor=figure.get_facecolor())


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "thumbnail.png")
