"""The protocols, explored: every configuration holds, every seeded error is caught, and without it its model passes."""

import sys
from pathlib import Path

import pytest

from .. import figures

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import model_light
import model_mutex
import model_reads
import model_rw
from explorer import Explorer

pytestmark = pytest.mark.crash

MODELS = {"mutex": model_mutex, "rw": model_rw, "reads": model_reads, "light": model_light}
CONFIGS = [
    pytest.param(model, name, id=f"{prefix}-{name}", marks=() if name in model.QUICK else pytest.mark.slow)
    for prefix, model in MODELS.items()
    for name in model.CONFIGS
]
MUTANTS = [pytest.param(model, name, id=f"{prefix}-{name}") for prefix, model in MODELS.items() for name in model.MUTANTS]


def fault_of(outcome):
    return outcome.fault and f"{outcome.fault} | {outcome.trace}"


@pytest.mark.parametrize(("model", "name"), CONFIGS)
def test_configuration_holds(model, name, record_property):
    outcome = Explorer(model.CONFIGS[name]).run()
    assert fault_of(outcome) is None
    record_property(figures.STATES, outcome.states)


@pytest.mark.parametrize(("model", "name"), MUTANTS)
def test_mutant_is_caught_and_its_twin_passes(model, name, record_property):
    twin, mutant = model.MUTANTS[name].run(name)
    assert fault_of(twin) is None
    assert mutant.fault is not None
    record_property(figures.MUTANTS, 1)


def test_the_small_ones_are_there():
    for model in MODELS.values():
        assert set(model.QUICK) <= set(model.CONFIGS)
