"""Bytes and text in, an Observation out, or why not."""
