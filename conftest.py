"""What every test of core and plugins starts from."""

import pytest
from hypothesis import settings

# A busy machine must not fail a property for being slow; pytest-timeout ends what hangs.
settings.register_profile("hatbus", deadline=None)
settings.load_profile("hatbus")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Lets tests run where pytest-timeout is not installed: a GPU machine may not have it."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "what pytest-timeout would read")
