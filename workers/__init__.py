"""What runs inside a worker process: bootstrap, runtimes, the default app. Knows no supervisor."""
