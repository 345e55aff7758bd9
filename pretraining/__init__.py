"""How rosa-tiny is made; not part of the installed package."""
