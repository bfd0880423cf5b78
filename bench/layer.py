"""How fast is a hybrid layer's training step beside PennyLane's devices and a jitted JAX circuit?

AngleEmbedding + StronglyEntanglingLayers + <Z> on every wire, forward and backward pass with gradients for weights and
inputs, Python included. Competitors at their best settings: ``TorchLayer`` with backprop on default.qubit (broadcasting)
and adjoint on lightning.qubit; TensorCircuit-NG on JAX, vmapped over the batch and jitted, warm, in complex128 as ours,
and its time to compile beside. A case that JAX has not compiled after three minutes is reported as that. Other ways to
encode data (``encodings_table.py``) and the engine's arithmetic (``engine.py``) are printed below, next to the machine's peak.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

import common
import encodings_table
import engine
import fubini

OURS = "fubini"
COMPILE_LIMIT = 180  # seconds
# (qubits, layers, inputs): goal as a multiple of the faster PennyLane device, goal as a multiple of warm JAX.
CASES: dict[tuple[int, int, int], tuple[float, float]] = {
    (4, 3, 32): (100, 5),
    (8, 6, 32): (100, 1),
    (10, 6, 256): (50, 1),
    (16, 4, 1): (5, 1),
}


def qnode(wires: int, device: str, diff_method: str) -> Any:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(wires))
        qml.StronglyEntanglingLayers(weights, wires=range(wires))
        return [qml.expval(qml.Z(k)) for k in range(wires)]

    return qml.QNode(circuit, qml.device(device, wires=wires), diff_method=diff_method)


def torch_step(layer: torch.nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    (weights,) = layer.parameters()

    def step() -> Any:
        weights.grad = x.grad = None
        layer(x).sum().backward()
        return weights.grad

    return step


def jax_step(x: np.ndarray, w: np.ndarray) -> tuple[Callable[[], Any], float]:
    """The jitted value and gradient by weights and inputs, and the seconds that compiling took."""
    import jax
    import tensorcircuit as tc

    jax.config.update("jax_enable_x64", True)
    backend = tc.set_backend("jax")
    tc.set_dtype("complex128")
    layers, wires, _ = w.shape

    def outputs(inputs: Any, weights: Any) -> Any:
        circuit = tc.Circuit(wires)
        for k in range(wires):
            circuit.rx(k, theta=inputs[k])
        for layer in range(layers):
            for k in range(wires):
                circuit.rz(k, theta=weights[layer, k, 0])
                circuit.ry(k, theta=weights[layer, k, 1])
                circuit.rz(k, theta=weights[layer, k, 2])
            distance = layer % (wires - 1) + 1
            for k in range(wires):
                circuit.cnot(k, (k + distance) % wires)
        return backend.stack([backend.real(circuit.expectation_ps(z=[k])) for k in range(wires)])

    def loss(inputs: Any, weights: Any) -> Any:
        return backend.sum(jax.vmap(outputs, (0, None))(inputs, weights))

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    start = time.perf_counter()
    jax.block_until_ready(function(x, w))
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(function(x, w)), seconds


def _try_compile(x: np.ndarray, w: np.ndarray) -> None:
    jax_step(x, w)


def jax_or_reason(
    x: np.ndarray, w: np.ndarray
) -> tuple[Callable[[], Any] | None, float | None, str]:
    """As jax_step, but compiled first in a process that can be stopped after the limit."""
    try:
        import jax
        import tensorcircuit as tc
    except ImportError:
        return None, None, "not installed (pip install .[bench])"
    process = multiprocessing.get_context("spawn").Process(target=_try_compile, args=(x, w))
    process.start()
    process.join(COMPILE_LIMIT)
    if process.is_alive():
        process.kill()
        return None, None, f"not compiled after {COMPILE_LIMIT} s"
    if process.exitcode:
        return None, None, "failed to compile"
    step, seconds = jax_step(x, w)
    return step, seconds, f"JAX {jax.__version__}, TensorCircuit-NG {tc.__version__}"


def case(wires: int, layers: int, inputs: int, seconds: float) -> dict[str, Any]:
    """Time one case, after checking that all competitors agree."""
    shape = (layers, wires, 3)
    rng = np.random.default_rng(0)
    w, x = rng.uniform(0, 2 * np.pi, shape), rng.uniform(0, 1, (inputs, wires))
    init = {"weights": torch.from_numpy(w)}
    data = torch.from_numpy(x).requires_grad_()
    start = time.perf_counter()
    ours = fubini.QuantumLayer(qnode(wires, "default.qubit", "best"), {"weights": shape}, init)
    constructed = time.perf_counter() - start
    start = time.perf_counter()
    expected = ours(data).detach()
    first = time.perf_counter() - start
    calls = {OURS: torch_step(ours, data)}
    peers = {"default.qubit": "backprop", "lightning.qubit": "adjoint"}
    for device, method in peers.items():
        theirs = qml.qnn.TorchLayer(qnode(wires, device, method), {"weights": shape}, init)
        # lightning.qubit rounds the results of torch QNodes to 1e-8.
        torch.testing.assert_close(theirs(data).detach(), expected, rtol=0, atol=1e-6)
        calls[device] = torch_step(theirs, data)
    step, compiled, note = jax_or_reason(x, w)
    if step is not None:
        value, (_, gradient) = step()
        np.testing.assert_allclose(float(value), float(expected.sum()), atol=1e-9)
        np.testing.assert_allclose(gradient, calls[OURS]().numpy(), atol=1e-9)
        calls["JAX"] = step
    timings = common.interleaved(calls, seconds=seconds, rounds=40, slice_s=2e-2)
    return {
        "qubits": wires,
        "layers": layers,
        "inputs": inputs,
        "construct_s": constructed,
        "first_call_s": first,
        "jax": note,
        "jax_compile_s": compiled,
        "samples_per_s": inputs / timings[OURS].minimum,
        "times": {name: t.as_dict() for name, t in timings.items()},
    }


def run(quick: bool) -> dict[str, Any]:
    """Run all cases on as many threads as there are processors.

    Args:
        quick: Only the small cases.

    Returns:
        The results.
    """
    count = fubini.get_num_threads()
    results, rows = [], []
    with common.threads(count):
        for (wires, layers, inputs), (goal, goal_jax) in CASES.items():
            if quick and wires > 8:
                continue
            found = case(wires, layers, inputs, 1.0 if quick else 6.0)
            results.append(found)
            times = found["times"]
            device = min(("default.qubit", "lightning.qubit"), key=lambda d: times[d]["min_s"])
            found["ratio"], found["goal"] = ratios(times, device), goal
            row = [
                f"({wires}, {layers}, {inputs})",
                *(milliseconds(times[n]) for n in (OURS, "default.qubit", "lightning.qubit")),
            ]
            row += [reached(found["ratio"], goal)]
            if "JAX" in times:
                found["ratio_jax"], found["goal_jax"] = ratios(times, "JAX"), goal_jax
                row += [
                    milliseconds(times["JAX"]),
                    reached(found["ratio_jax"], goal_jax),
                    f"{found['jax_compile_s']:.1f}",
                ]
            else:
                row += [found["jax"], "", ""]
            rows.append(
                [
                    *row,
                    f"{found['samples_per_s']:.0f}",
                    f"{found['construct_s'] * 1e3:.1f} + {found['first_call_s'] * 1e3:.0f}",
                ]
            )
    head = [
        "(qubits, layers, inputs)",
        "fubini ms",
        "default.qubit ms",
        "lightning ms",
        "x PennyLane",
        "JAX ms",
        "x JAX",
    ]
    head += ["JAX compile s", "samples/s", "construct + first call ms"]
    common.print_table(
        f"forward + backward, {count} threads; minimum / median; goal reached: +", head, rows
    )
    with common.threads(count):
        encodings = encodings_table.run(quick, count)
    arithmetic = engine.run(quick)
    with contextlib.suppress(ImportError):
        draw(results)
    return {"cases": results, "encodings": encodings, "threads": count, "arithmetic": arithmetic}


def ratios(times: dict[str, dict[str, float]], other: str) -> list[float]:
    return [times[other][key] / times[OURS][key] for key in ("min_s", "median_s")]


def milliseconds(timing: dict[str, float]) -> str:
    return f"{timing['min_s'] * 1e3:.3g} / {timing['median_s'] * 1e3:.3g}"


def reached(ratio: list[float], goal: float) -> str:
    return f"{ratio[0]:.1f} / {ratio[1]:.1f} (goal {goal:g} {'+' if ratio[0] >= goal else '-'})"


def draw(results: list[dict[str, Any]]) -> None:
    """Bars: milliseconds of a step, by case and library."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for r in results for name in r["times"]))
    figure, axis = plt.subplots(figsize=(8, 4.5))
    for k, name in enumerate(names):
        places = [i for i, r in enumerate(results) if name in r["times"]]
        values = [results[i]["times"][name]["min_s"] * 1e3 for i in places]
        axis.bar([i + 0.2 * k for i in places], values, 0.2, label=name)
    labels = [f"{r['qubits']} qubits, {r['layers']} layers,\n{r['inputs']} inputs" for r in results]
    axis.set_xticks([i + 0.1 * (len(names) - 1) for i in range(len(results))], labels)
    axis.set(yscale="log", ylabel="milliseconds, forward + backward")
    axis.legend()
    axis.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    figure.savefig(common.picture_path("layer"), dpi=130)
    plt.close(figure)
