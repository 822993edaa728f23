"""Side-by-side speed and memory; every figure is a ratio of two things measured in one run."""
