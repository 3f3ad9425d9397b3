"""What keeps a failure from spreading: circuit breaker, retry budget. Pure: time is an argument."""
