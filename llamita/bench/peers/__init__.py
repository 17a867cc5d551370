"""Other libraries' sessions; each file imports its library, and is imported only in that system's process."""
