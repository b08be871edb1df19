"""A step's configuration, command line, record and progress."""
