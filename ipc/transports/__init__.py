"""The only package of ipc that owns file descriptors."""
