"""Recordings: read, run through a policy, played back, made. Works without ROS; the bag library is imported only here."""
