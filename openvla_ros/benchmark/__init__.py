"""Measurements of the whole package: the device's limits, the engine beside the released way to run it, and what drafting could gain."""
