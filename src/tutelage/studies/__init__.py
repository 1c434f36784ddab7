"""Studies: grids of runs that end in a table or a figure."""
