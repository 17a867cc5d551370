"""Checkers that keep the package's shape, each a function from sources to a list of complaints."""
