"""`python -m tutelage` is the command `tutelage`."""

from tutelage.cli import command_line

command_line()
