"""Bytes on the wire: frames, heads, payload codec. Pure: no I/O, no clock."""
