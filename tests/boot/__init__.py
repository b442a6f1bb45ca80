"""An emulated node, from a blank card to counts."""
