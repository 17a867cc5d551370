"""Sessions of other libraries. Each file imports its library, so only that system's process imports the file."""
