"""Drivers: one socket, one timer and a map of waiting callers around the protocol core."""
