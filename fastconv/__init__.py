"""Convolution for NumPy arrays, compiled by Numba."""

__version__ = "0.1.0"
