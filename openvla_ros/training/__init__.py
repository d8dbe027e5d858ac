"""Data -> examples -> loop -> checkpoint. What is special to the shipped default policy lies in `default_policy`."""
