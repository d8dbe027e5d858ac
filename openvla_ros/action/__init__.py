"""An ActionChunk in, a safe command out: pure, without ROS and without torch."""
