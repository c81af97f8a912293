"""How fast the rooms of this package are on this machine, beside plain torch."""
