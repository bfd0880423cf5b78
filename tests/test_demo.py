"""The demo: every case runs with every optimizer, tells the truth, and refuses what it cannot do before it trains."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from fubini import demo
from fubini.demo import circuit, digits, molecule, report
from fubini.demo.training import MINIMIZE, Run, score

CASES = {case.name: case for case in demo.CASES}


def no_tick() -> None:
    pass


@pytest.mark.parametrize("optimizer", circuit.CASE.rates)
@pytest.mark.parametrize("name", ["circuit", "molecule"])
def test_exact_cases_approach_their_minimum(name, optimizer):
    case = CASES[name]
    run = case.train(optimizer, case.rates[optimizer], case.steps, 0, no_tick)
    first, last = run.measures[0][1], run.measures[-1][1]
    assert last < 0.05 * first  # SGD may still be on its way, in the valley that QNG crosses
    assert run.reached is not None or optimizer == "SGD"
    assert run.measures[-1][1] >= -1e-12  # the exact minimum cannot be undercut
    if optimizer == MINIMIZE:  # it ends by itself, at the last digit
        assert run.steps < case.steps
        assert last < 1e-12
    else:
        assert run.steps == case.steps
    assert len(run.losses) == len(run.moments) == run.steps + 1


@pytest.mark.parametrize("optimizer", digits.CASE.rates)
def test_digits_learn(optimizer):
    ticks = []
    run = digits.train(optimizer, digits.CASE.rates[optimizer], 44, 0, lambda: ticks.append(1))
    assert len(ticks) == len(run.losses) == 44
    assert np.mean(run.losses[-5:]) < np.mean(run.losses[:5])
    assert [step for step, _ in run.measures] == [22, 44]
    assert all(0 <= value <= 1 for _, value in run.measures)


def test_a_run_is_reproducible():
    first, second = (digits.train(digits.DEFAULT, (), 3, 5, no_tick) for _ in range(2))
    assert first.losses == second.losses
    assert digits.train(digits.DEFAULT, (), 3, 6, no_tick).losses != first.losses


def test_training_leaves_the_random_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    digits.train("SGD", (0.3, 0.1), 1, 0, no_tick)
    assert torch.equal(before, torch.get_rng_state())


def test_held_out_images_are_not_trained_on():
    images, labels = digits.load()
    assert images.shape == (1797, 64)
    assert len(labels) == 1797
    assert digits.TRAINING % digits.BATCH == 0
    # Centring and scaling use the training part only.
    training = images[: digits.TRAINING]
    assert torch.allclose(training.mean(0), torch.zeros(64, dtype=torch.float64), atol=1e-12)


def test_minimum_of_the_circuit():
    qnode = circuit.make_circuit()
    # The angles to which every optimizer converges; the last one does not matter.
    best = torch.tensor([0.0, -math.pi / 2, math.pi / 2, 0.3], dtype=torch.float64)
    assert qnode(best).item() == pytest.approx(circuit.MINIMUM, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(300, 4, dtype=torch.float64, generator=generator)
    assert min(qnode(a).item() for a in angles) >= circuit.MINIMUM


def test_energy_of_hydrogen():
    # Full configuration interaction in STO-3G, as published with PennyLane's tutorial. It came from another
    # Hartree-Fock program, whose integrals differ by some 1e-7.
    assert molecule.hydrogen()[1] == pytest.approx(-1.136189454088, abs=1e-6)


@pytest.mark.parametrize("case", demo.CASES, ids=lambda case: case.name)
def test_rates_are_on_the_grid(case):
    assert all(rates in case.grid for rates in case.rates.values() if rates)
    assert [name for name, rates in case.rates.items() if not rates] in (
        [MINIMIZE],
        [digits.DEFAULT],
    )


def test_quick_run_writes_table_and_picture(tmp_path, capsys):
    threads = torch.get_num_threads()
    path = tmp_path / "curves.png"
    results = demo.run(path, quick=True)
    printed = capsys.readouterr()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(results) == 3
    for case, runs in results.items():
        assert case.title in printed.out
        assert [run.optimizer for run in runs] == list(case.rates)
    assert str(path) in printed.out
    # No bar in a log: a line for every run.
    assert len(printed.err.splitlines()) == sum(len(case.rates) for case in demo.CASES)
    assert "digits, Adam, TorchLayer: 3 steps in" in printed.err
    assert torch.get_num_threads() == threads


def test_a_terminal_shows_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    demo.run(tmp_path / "curves.png", only="circuit", quick=True)
    said = capsys.readouterr().err
    assert "100%" in said
    assert "steps in" not in said


def test_the_moment_of_the_target():
    exact = Run("SGD", (1.0,), [3.0, 2.0, 1.0], [(0, 3.0), (1, 2.0), (2, 1.0)], 1, [0, 5, 9], 9)
    assert exact.seconds_reached == 5  # the loss after one step
    batches = Run("SGD", (1.0,), [3.0, 2.0], [(2, 0.5)], 1, [5, 9], 9)
    assert batches.seconds_reached == 5  # moments are those after each step
    assert Run("SGD", (1.0,), [3.0], [(1, 0.5)], None, [5], 5).seconds_reached is None


def test_pennylane_trains_the_same_model():
    ours = digits.train("Adam", digits.CASE.rates["Adam"], 3, 0, no_tick)
    theirs = digits.train(digits.PENNYLANE, digits.CASE.rates["Adam"], 3, 0, no_tick)
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-12)
    assert digits.CASE.rates[digits.PENNYLANE] == digits.CASE.rates["Adam"]


def test_only_one_case(tmp_path, capsys):
    results = demo.run(tmp_path / "curves.svg", only="circuit", quick=True)
    assert [case.name for case in results] == ["circuit"]
    assert "Handwritten" not in capsys.readouterr().out


def test_tuning_returns_rates_of_the_grid(capsys):
    best = demo.tune(only="circuit", quick=True)
    tuned = [name for name, rates in circuit.CASE.rates.items() if rates]
    assert set(best) == {("circuit", name) for name in tuned}
    assert digits.PENNYLANE in digits.CASE.borrowed
    assert all(rates in circuit.CASE.grid for rates in best.values())
    assert "QNG block-diag" in capsys.readouterr().out


def test_score_prefers_the_target_then_the_loss():
    def run(reached, loss):
        return Run("SGD", (1.0,), [1.0, loss], [(1, loss)], reached, [0.0, 0.0], 0.0)

    ordered = [run(3, 0.5), run(4, 0.1), run(None, 0.1), run(None, 0.2), run(None, math.nan)]
    assert sorted(ordered[3:] + ordered[:3], key=lambda r: score(r, 10)) == ordered


def test_table_of_a_case():
    runs = [Run("SGD", (0.1,), [0.0, -0.5], [(0, 0.1), (1, 1e-7)], 1, [0.0, 2.0], 2.0)]
    text = report.table({circuit.CASE: runs})
    assert "-0.500000" in text
    assert "1.0e-07" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "missing/folder/x.png"}, "output: expected a file in an existing folder"),
        ({"output": "x.xyz"}, "output: expected one of the formats"),
        ({"only": "atom"}, "only: expected one of"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        demo.run(**arguments, quick=True)


def test_missing_packages_name_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tqdm" else find(name)
    )
    with pytest.raises(ImportError, match=r"needs tqdm.*extra 'demo'"):
        demo.run(quick=True)
