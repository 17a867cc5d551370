"""The chat page at `/`: its static files, and the routes that serve them."""
