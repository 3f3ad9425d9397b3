"""Who gets a message: the directory, the choice of an instance, topic matching. Pure: no I/O, no clock."""
