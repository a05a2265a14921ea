"""The protocols, explored: the small configurations hold, and every seeded error is caught."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import model_mutex
import model_rw

MUTANTS = {"mutex": model_mutex.MUTANTS, "rw": model_rw.MUTANTS}
SEEDED = [(model, name) for model, mutants in MUTANTS.items() for name in mutants]


def explored(model):
    outcome = model_mutex.Explorer(model).run()
    return f"{outcome.fault} | {outcome.trace}" if outcome.fault else None


def test_mutex_quick():
    faults = {name: explored(model_mutex.CONFIGS[name]) for name in model_mutex.QUICK}
    assert faults == dict.fromkeys(model_mutex.QUICK)


def test_rw_quick():
    faults = {name: explored(model_rw.CONFIGS[name]) for name in model_rw.QUICK}
    assert faults == dict.fromkeys(model_rw.QUICK)


@pytest.mark.parametrize(("model", "name"), SEEDED)
def test_mutant_is_caught_and_its_twin_passes(model, name):
    mutant = MUTANTS[model][name]
    assert explored(mutant.model("")) is None
    assert explored(mutant.model(name)) is not None
