"""Recordings without ROS: read them, replay a policy over them, report."""
