"""OpenVLA in native torch: the only room, with training, that imports torch."""

import os

# Weights in pages of 2 MB, where the system grants them to those who ask (transparent_hugepage: madvise): a decoder pass on a CPU reads
# all of them, and looking up pages of 4 KB costs a tenth of its time. Work at import, against the rule, because torch looks only once, at
# its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
