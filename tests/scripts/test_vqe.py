"""``scripts/vqe.py``: energies, their error bars, and what it leaves."""

import numpy as np
import pytest
from vqe import HAMILTONIANS, main, minimize

from qailab.backends import AerBackend, StatevectorBackend
from tests.support.training import refusal_of

GROUND = {"h2": -1.85727503, "heisenberg": -8.0}
"""Of qiskit-algorithms' tests; and that of a ring of four spins, -2 for each edge."""


def energies(name, backend=None, shots=None, steps=100, seed=7):
    hamiltonian, circuit = HAMILTONIANS[name][0]()
    return minimize(hamiltonian, circuit, backend or StatevectorBackend(), shots, steps, seed)


@pytest.mark.parametrize("name", GROUND)
def test_it_converges_to_the_ground_energy(name):
    hamiltonian, _ = HAMILTONIANS[name][0]()
    exact = np.linalg.eigvalsh(hamiltonian.to_matrix())[0]
    assert exact == pytest.approx(GROUND[name], abs=1e-8)
    for seed in range(2):
        curve = energies(name, seed=seed)
        assert curve.shape == (100, 2)
        assert exact - 1e-9 <= curve[-1, 0] < exact + 1e-3
        assert not curve[:, 1].any()


@pytest.mark.parametrize("name", GROUND)
def test_the_error_bars_are_those_of_the_shots(name):
    pairs = [(energies(name, None, 400, 1, s)[0], energies(name, None, None, 1, s)[0, 0])
             for s in range(25)]  # fmt: skip
    scores = np.array([(energy - exact) / error for (energy, error), exact in pairs])
    assert abs(scores.mean()) < 4 / np.sqrt(25)
    assert abs(scores.std() - 1) < 4 / np.sqrt(2 * 25)  # tests/torch/ knows them to 13 %


def test_shots_come_near_on_aer_too():
    energy, error = energies("h2", AerBackend(), 4096, 60)[-1]
    assert 0 < error < 0.02
    assert energy == pytest.approx(GROUND["h2"], abs=0.02 + 5 * error)


def test_the_program_leaves_a_picture_and_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--hamiltonian=heisenberg", "--shots=16", "--steps=3"]) == 0
    assert (tmp_path / "runs" / "vqe-heisenberg.png").read_bytes().startswith(b"\x89PNG")
    line = capsys.readouterr().out
    assert line.startswith("Energy ")
    assert "J; exact -8.000000. See runs/vqe-heisenberg.png" in line


@pytest.mark.parametrize("wrong", [["--shots=0"], ["--seed=-1"]])
def test_wrong_options_end_with_one_line(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert refusal_of(main, wrong, capsys).startswith("vqe: error: ")
    assert not list(tmp_path.iterdir())
