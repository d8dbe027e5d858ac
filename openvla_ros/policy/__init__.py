"""Everything that turns an Observation into an ActionChunk, and the statistics of its actions."""
