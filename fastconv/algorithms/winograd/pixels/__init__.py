"""Winograd convolution of images held pixel by pixel (nhwc): the lanes of vectors are channels.

    V[position][tile][c] = B d B^T     U[panel][position][c][k] = G g G^T     M[position][tile][k] = V U

All channels of a pixel take the same steps, so a transform is vector code without shuffles or masks, and
the products are those of `fastconv.gemm.gathered`: scalars of V against vectors of U.
"""
