"""How fast is the engine's arithmetic? Amplitude-gates per second and core, next to what the machine can do.

An amplitude-gate is one amplitude updated by one gate of the circuit as written (RX, RY, RZ, CNOT: fused or not).
The goal is 3e9 per second and core at 4 to 12 qubits with batches of 64 and more. The peak is measured in the same
process: fused multiply-adds by matrix products in float64, memory by copying arrays that do not fit the cache.

    python bench/engine.py [--threads N] [--repeat N]
"""

import argparse
import json
import time

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.circuit import Circuit

GOAL = 3e9


def best(call, repeat):
    """Shortest of several runs, in seconds."""
    call()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def ansatz(num_wires, num_layers):
    """AngleEmbedding, then layers of RX, RY, RZ and a ring of CNOT."""
    operations = [qml.RX(0.1, w) for w in range(num_wires)]
    for _ in range(num_layers):
        for w in range(num_wires):
            operations += [qml.RX(0.1, w), qml.RY(0.2, w), qml.RZ(0.3, w)]
        if num_wires > 1:
            operations += [qml.CNOT([w, (w + 1) % num_wires]) for w in range(num_wires)]
    measurements = [qml.expval(qml.Z(w)) for w in range(num_wires)]
    return qml.tape.QuantumScript(operations, measurements)


def machine_peak(repeat):
    """(fused multiply-adds per second, bytes per second) of one core."""
    a = np.random.default_rng(0).normal(size=(768, 768))
    out = np.empty_like(a)
    fma = 768**3 / best(lambda: np.matmul(a, a, out=out), repeat)
    source = np.zeros(1 << 24)
    target = np.zeros_like(source)
    copied = 2 * source.nbytes / best(lambda: np.copyto(target, source), repeat)
    return fma, copied


def main():
    """Prints the table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args()
    _core.set_num_threads(arguments.threads)
    fma, memory = machine_peak(arguments.repeat)
    print(f"isa {_core.isa()}, threads {arguments.threads}")
    print(f"machine (threads of NumPy's BLAS): {fma / 1e9:.1f} G fma/s, {memory / 1e9:.1f} GB/s copy; goal {GOAL:.0e}")
    print(f"{'case (n, L, B)':>16} {'passes':>7} {'forward us':>11} {'reverse us':>11} {'jvp us':>9} "
          f"{'fwd Gag/s':>10} {'rev Gag/s':>10} {'samples/s':>10}")
    rows = []
    cases = [(4, 3, 32), (8, 6, 32), (10, 6, 256), (16, 4, 1)]
    cases += [(n, 6, 64) for n in (4, 6, 8, 10, 12)] + [(n, 6, 1) for n in (4, 8, 12, 16, 18, 20)]
    for num_wires, num_layers, batch in cases:
        tape = ansatz(num_wires, num_layers)
        circuit = Circuit.from_tape(tape)
        rng = np.random.default_rng(0)
        angles = np.tile(rng.normal(size=circuit.num_angles), (batch, 1))
        angles[:, :num_wires] = rng.normal(size=(batch, num_wires))
        ones = np.ones((batch, num_wires))
        program = circuit.program
        repeat = arguments.repeat if num_wires < 18 else 3
        forward = best(lambda: _core.expval(program, angles), repeat)
        reverse = best(lambda: _core.vjp(program, angles, ones), repeat)
        tangent = best(lambda: _core.jvp(program, angles, angles), repeat)
        updates = len(tape.operations) * 2**num_wires * batch
        row = {
            "qubits": num_wires, "layers": num_layers, "batch": batch, "passes": program.num_steps,
            "forward_s": forward, "reverse_s": reverse, "jvp_s": tangent,
            "forward_rate": updates / forward / arguments.threads,
            "reverse_rate": 3 * updates / reverse / arguments.threads,
        }
        rows.append(row)
        print(f"{f'({num_wires}, {num_layers}, {batch})':>16} {program.num_steps:7d} {forward * 1e6:11.1f} "
              f"{reverse * 1e6:11.1f} {tangent * 1e6:9.1f} {row['forward_rate'] / 1e9:10.2f} "
              f"{row['reverse_rate'] / 1e9:10.2f} {batch / reverse:10.0f}")
    print(json.dumps({"fma_per_s": fma, "copy_bytes_per_s": memory, "rows": rows}))


if __name__ == "__main__":
    main()
