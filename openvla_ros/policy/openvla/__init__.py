"""OpenVLA in native torch: the only room, with training, that imports torch."""
