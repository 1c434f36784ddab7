"""Telling whether it worked: metrics by family, each with an interval and the number of items behind it."""
