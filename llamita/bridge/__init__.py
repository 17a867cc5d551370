"""Other libraries' models beside ours: the only rooms, with bench/peers, that import those libraries."""
