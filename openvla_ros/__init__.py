"""openvla_ros: a vision-language-action model in charge of a real robot arm, on ROS 2."""

__version__ = "0.1.0"
