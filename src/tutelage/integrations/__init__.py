"""Tutelage inside other people's loops."""
