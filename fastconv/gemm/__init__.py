"""The shared engine: every algorithm multiplies its operands with the one tile in `tile.py`."""
