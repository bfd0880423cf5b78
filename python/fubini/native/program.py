"""The program of a circuit: its gates, and the moments and outputs of what it measures, as the kernel takes them."""

import itertools
from typing import Any

import numpy as np

from fubini import _core
from fubini.native.gates import NativeGate
from fubini.native.measurements import Measurement, square
from fubini.native.reading import Structure


def program_of(structure: Structure) -> _core.Program:
    """Return the program of a circuit's structure."""
    builder = gates_of(structure)
    moments = itertools.count()

    def add_moment(measurement: Measurement) -> int:
        moment = next(moments)
        if measurement.projector is not None:
            wires, value = measurement.projector
            builder.probability_term(moment, 1.0, list(wires), value)
        for word, wires, coefficient in measurement.terms:
            builder.pauli_term(moment, coefficient, word, list(wires))
        return moment

    for measurement in structure.measurements:
        if measurement.kind == "probs":
            for value in range(measurement.columns):
                one = Measurement("expval", projector=(measurement.wires, value))
                builder.output(add_moment(one))
        elif measurement.kind == "var":
            squared = add_moment(square(measurement, len(structure.wires)))
            builder.output(squared, add_moment(measurement))
        elif measurement.kind == "expval":
            builder.output(add_moment(measurement))
    return builder.build()


def gates_of(structure: Structure, more: int = 0) -> _core.ProgramBuilder:
    """Return a builder with the gates of a circuit, and room for more angles."""
    index = {wire: i for i, wire in enumerate(structure.wires)}
    angles = structure.num_angles + more
    builder = _core.ProgramBuilder(len(structure.wires), angles, structure.takes_state)
    for gate in structure.gates:
        _add_gate(builder, gate, index)
    return builder


def _add_gate(builder: _core.ProgramBuilder, gate: NativeGate, index: dict[Any, int]) -> None:
    """Appends a gate to a program builder."""
    wires = [index[wire] for wire in gate.wires]
    controls = [index[wire] for wire in gate.controls]
    values = list(gate.control_values)
    parameters = [(p.slot, p.coefficient, p.offset) for p in gate.parameters]
    if gate.kind == "table":
        builder.gate(gate.name, wires, controls, values, gate.adjoint, parameters)
    elif gate.kind == "pauli":
        builder.pauli_rotation(gate.name, wires, controls, values, gate.adjoint, parameters[0])
    else:
        array = np.frombuffer(gate.data, dtype=np.complex128)
        method = builder.matrix if gate.kind == "matrix" else builder.diagonal
        method(array, wires, controls, values, gate.adjoint)
