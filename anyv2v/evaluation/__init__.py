"""How good edited clips are: which metrics apply to one, their table, and a sheet."""
