"""How fast the package is here: each measurement is one function that returns plain numbers. Only the command line uses this room."""
