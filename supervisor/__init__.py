"""What watches the workers: the pure core, the configuration, the host, the commands. Never imports workers."""
