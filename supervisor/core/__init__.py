"""The supervisor core: facts and time in, orders out. Pure: no I/O, no clock, no randomness."""
