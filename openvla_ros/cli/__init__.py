"""The command `openvla-ros`: one small module per subcommand. May use every room; nothing uses it."""
