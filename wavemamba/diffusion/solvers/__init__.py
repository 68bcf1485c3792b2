"""Solvers of `dx/dt = field(t, x)`: what they are, those that run here, and those of torchdiffeq and SciPy."""
