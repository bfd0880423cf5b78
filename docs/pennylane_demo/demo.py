r"""
Natural gradient for hybrid networks in PyTorch
===============================================

.. meta::
    :property="og:description": Train hybrid quantum-classical PyTorch models with the natural gradient: several circuits,
        classical layers, batches of data, and the full or block-diagonal metric.
    :property="og:image": https://pennylane.ai/qml/_static/demonstration_assets/natural_gradient_torch/thumbnail.png

.. related::

    tutorial_quantum_natural_gradient Quantum natural gradient
    tutorial_qnn_module_torch Turning quantum nodes into Torch Layers

The quantum natural gradient [#Stokes2019]_ takes the geometry of states into account: a step is as long as the state moves,
rather than as long as the angles change. :class:`~.pennylane.QNGOptimizer` brings it to circuits whose cost is a QNode.
A hybrid model in PyTorch asks for more. Its circuits stand between classical layers, there may be several of them,
they see a batch of data in every step, and part of their arguments is not trained at all.

In this demonstration we train such a model with `fubini <https://fubini.example>`__, whose optimizer is a
``torch.optim.Optimizer``, and look at the matrices behind its steps.

.. figure:: ../_static/demonstration_assets/natural_gradient_torch/thumbnail.png
    :align: center
    :width: 60%
    :target: javascript:void(0)

A hybrid model
--------------

We take the iris data set that scikit-learn ships: four measurements of 150 flowers of three species.
"""

import matplotlib.pyplot as plt
import pennylane as qml
import torch
from sklearn.datasets import load_iris
from sklearn.preprocessing import minmax_scale

import fubini

x, y = load_iris(return_X_y=True)
x = torch.tensor(minmax_scale(x, (0, 3)), dtype=torch.float64)
y = torch.tensor(y)

##############################################################################
# Two circuits share the work: each sees two of the measurements, and a classical layer weighs what they say.
# ``fubini.QuantumLayer`` takes the place of :class:`~.pennylane.qnn.TorchLayer`, with the same arguments:


def make_qnode(wires):
    @qml.qnode(qml.device("default.qubit", wires=wires))
    def circuit(inputs, weights):
        qml.AngleEmbedding(inputs, wires=range(wires))
        qml.StronglyEntanglingLayers(weights, wires=range(wires))
        return [qml.expval(qml.PauliZ(i)) for i in range(wires)]

    return circuit


class Hybrid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sepal = fubini.QuantumLayer(make_qnode(2), {"weights": (2, 2, 3)})
        self.petal = fubini.QuantumLayer(make_qnode(2), {"weights": (2, 2, 3)})
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.cat([self.sepal(x[:, :2]), self.petal(x[:, 2:])], dim=1))


##############################################################################
# The metric of a circuit
# -----------------------
#
# The Fubini-Study metric of a circuit with the state :math:`|\psi(\theta)\rangle` is
#
# .. math::
#
#     g_{ij} = \text{Re}\left[\langle\partial_i\psi|\partial_j\psi\rangle
#         - \langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle\right].
#
# For data, there is one for each input, and a step needs their mean. Note that the mean of the metrics is not the metric
# at the mean of the inputs, because :math:`g` is no linear function of them. The inputs themselves are no parameters and
# have no rows in the matrix.

circuit = make_qnode(2)
weights = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
full = fubini.metric_tensor(circuit, reduce="mean")(x[:, :2], weights)
block = fubini.metric_tensor(circuit, approx="block-diag", reduce="mean")(x[:, :2], weights)

figure, axes = plt.subplots(1, 2, figsize=(7, 3))
for axis, matrix, title in zip(axes, (full, block), ("full", "block-diagonal"), strict=True):
    axis.imshow(matrix.detach().reshape(12, 12), vmin=-0.25, vmax=0.25, cmap="RdBu")
    axis.set_title(title)
plt.show()

##############################################################################
# On hardware, the block-diagonal approximation is what one can afford: one circuit for each block. On a simulator both
# cost about as much as a gradient.
#
# Classical layers
# ----------------
#
# The metric of the states knows nothing of the classical layer. What knows both is the Fisher information of the model's
# outputs [#Amari1998]_,
#
# .. math::
#
#     F = \mathbb{E}\left[\nabla\log p(y|x)\,\nabla\log p(y|x)^T\right],
#
# in which :math:`y` is drawn from the model's own prediction. For the cross-entropy loss it is the Gauss-Newton matrix.
# ``QNGOptimizer`` takes it when it is told the loss, and needs no learning rate then. With ``metric="quantum"``, circuits
# take the natural gradient of their states and the classical layer the plain gradient. We compare both with Adam:

loss_fn = torch.nn.CrossEntropyLoss()


def train(make_optimizer, steps=40):
    torch.manual_seed(1)
    model = Hybrid().double()
    optimizer = make_optimizer(model)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


runs = {
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.1),
    "natural gradient, states": lambda model: fubini.QNGOptimizer(model, metric="quantum", lr=0.1),
    "natural gradient, outputs": lambda model: fubini.QNGOptimizer(model, loss=loss_fn),
}
figure, axis = plt.subplots(figsize=(7, 3.5))
for name, make_optimizer in runs.items():
    losses, model = train(make_optimizer)
    axis.semilogy(losses, label=name)
    print(f"{name:28s} loss {losses[-1]:.4f}")
axis.set(xlabel="step", ylabel="loss")
axis.legend()
plt.show()

##############################################################################
# What the optimizer chose, and how the circuits run:

print(model.sepal.explain())

##############################################################################
# Energies
# --------
#
# A circuit without data needs no module. ``fubini.compiled`` makes a QNode a function of torch tensors with the same
# signature, and the optimizer finds the metric of the weights that went into it:


@qml.qnode(qml.device("default.qubit", wires=2))
def ising(w):
    qml.BasicEntanglerLayers(w, wires=range(2), rotation=qml.RY)
    return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(0) + 0.5 * qml.X(1))


energy = fubini.compiled(ising)
w = torch.nn.Parameter(torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float64))
optimizer = fubini.QNGOptimizer([w], lr=0.1)
for _ in range(100):
    optimizer.zero_grad()
    loss = energy(w)
    loss.backward()
    optimizer.step()
print(f"energy {loss.item():.6f}, exact {-(2**0.5):.6f}")

##############################################################################
# Conclusion
# ----------
#
# The natural gradient fits into an ordinary PyTorch loop: the layer and the optimizer change, and nothing else. It pays
# where the metric is far from a multiple of the identity. Where it is nearly constant, as for shallow circuits, a tuned
# Adam does as well.
#
# References
# ----------
#
# .. [#Stokes2019]
#
#     James Stokes, Josh Izaac, Nathan Killoran, Giuseppe Carleo.
#     "Quantum Natural Gradient." `Quantum 4, 269 <https://doi.org/10.22331/q-2020-05-25-269>`__ (2020).
#
# .. [#Amari1998]
#
#     Shun-Ichi Amari.
#     "Natural gradient works efficiently in learning." `Neural Computation 10, 251
#     <https://doi.org/10.1162/089976698300017746>`__ (1998).
