"""The shared engine: every algorithm multiplies its operands with the one tile in `tile.py`.

* The tile: `tile`; `result`, which finishes what it writes; `gathered`, over pixels whose channels are neighbours.
* Operands made ready: weights in panels by `pack`, pixels of every channel alike by `segments`, images turned by `turn`
  and `transposition`, planes parted by `interlace`; results woven by `weave`, partial sums added by `splits`.
* The work cut: `blocking` into blocks of a cache's size, `schedule` into tasks of workers.
* On a GPU: `cuda`, `cuda_share`, `batched`.
"""
