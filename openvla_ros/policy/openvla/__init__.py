"""OpenVLA in native torch: the only room, with training, that imports torch."""

import os

# Weights in pages of 2 MB, where the system grants them on request (transparent_hugepage madvise, the default of Debian and Ubuntu): a
# decoder pass on a CPU reads all of them, and looking up 4 KB pages costs a tenth of its time. torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
