"""One thread per process: pytest-xdist fills the cores, and small networks are slower on several threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported, and for every process that tests start
