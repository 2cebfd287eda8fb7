"""A library that is not installed is named in one line, with the command that installs it."""

import importlib
import sys

import pytest

EXTRAS = {
    "lightly": "lightly",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
}


@pytest.mark.parametrize("library", EXTRAS)
def test_a_missing_library_is_named(library, monkeypatch):
    importlib.import_module(f"mixcontrast.adapters.{library}")
    for name in [known for known in sys.modules if known == library or known.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"mixcontrast.adapters.{library}")
    message = f"^This adapter needs .*{library}.*; pip install 'mixcontrast.{EXTRAS[library]}.'$"
    with pytest.raises(ModuleNotFoundError, match=message) as error:
        importlib.import_module(f"mixcontrast.adapters.{library}")
    assert "\n" not in str(error.value)
