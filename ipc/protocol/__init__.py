"""The protocol core: bytes and time in, events and bytes out. Pure: no I/O, no clock."""
