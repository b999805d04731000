"""Settings of every test."""

from hypothesis import settings

# The first example compiles the code under test, which takes longer than any deadline.
settings.register_profile("paceline", deadline=None)
settings.load_profile("paceline")
