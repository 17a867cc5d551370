"""Sessions of other libraries. A session's file imports its library, so only that system's process imports the file."""
