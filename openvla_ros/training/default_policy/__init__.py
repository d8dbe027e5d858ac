"""The shipped default policy: its recipe, its data from simulation, and what is learned beside actions."""
