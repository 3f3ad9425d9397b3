"""The blocking twins of the public objects: same file names, same roles."""
