"""Measure llamita and other libraries: same weights, same input, same threads, in alternating turns."""
