"""What is not collected: modules of kernels where Triton, which comes with torch for Linux, is not."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["mixcontrast/kernels/gathers.py", "mixcontrast/kernels/row_sums.py"]
