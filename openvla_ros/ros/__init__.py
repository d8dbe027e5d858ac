"""The nodes and what connects them to ROS: the only room that imports it. May use every room."""
