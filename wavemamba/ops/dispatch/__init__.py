"""Who can run what, and why not: what the ops share above their kernels."""
