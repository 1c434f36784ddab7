"""Rows of text: reading and checking them, turning them into ids, and the order in which they come.

>>> from tutelage.data import Order
>>> Order(rows=3, seed=0, shuffle=False).batch(step=0, size=2)
[0, 1]
"""

from tutelage.data.notes import repeat_notes
from tutelage.data.order import Order
from tutelage.data.plain import plain_rows
from tutelage.data.row import Row, Rows
from tutelage.data.rows import fingerprint, read_rows
from tutelage.data.templates import Example, Examples, encode

__all__ = [
    "Example",
    "Examples",
    "Order",
    "Row",
    "Rows",
    "encode",
    "fingerprint",
    "plain_rows",
    "read_rows",
    "repeat_notes",
]
