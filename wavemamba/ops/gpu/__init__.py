"""The Triton runtime: arithmetic and launches. Importing any part of it imports triton."""
