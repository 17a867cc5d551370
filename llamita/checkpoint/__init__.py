"""Models as people name them: the embedded one, a folder, a name on the hub."""
