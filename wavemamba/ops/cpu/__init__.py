"""The numba runtime: vectors, memory, threads. Importing any part of it imports numba."""
