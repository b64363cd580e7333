"""What every test of core and plugins starts from."""

from hypothesis import settings

# A busy machine must not fail a property for being slow; pytest-timeout ends what hangs.
settings.register_profile("hatbus", deadline=None)
settings.load_profile("hatbus")
