"""Recorded days as tests: a policy over recordings, compared with what was expected of it. One unit of work is one recording."""
