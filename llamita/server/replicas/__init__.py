"""`llamita serve --replicas`: processes of the same server on Ray Serve, and the one port in front of them."""
