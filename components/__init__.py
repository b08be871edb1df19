"""The six steps, which run in containers, and the packages that they share."""
