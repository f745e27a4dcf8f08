"""Measurements that others can repeat: each module is a command that writes a tidy CSV with versions."""
