"""Kernels of the implicit GEMM on a GPU: pixels go from the image to shared memory tile by tile, lowered nowhere.

* `correlation` is forward and input gradient: `places` finds where a column's pixel and result lie, `bring` copies what the
  next products are of, `write` finishes and stores results; `geometry` is what they are told;
* `weight` is the weight gradient, whose sums go over pixels;
* `marks` tells both which taps lie outside an image.
"""
