"""Data sources, and the stream that resumes."""
