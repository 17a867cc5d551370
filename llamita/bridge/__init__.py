"""Bridges to other libraries' models. Only this folder and bench/peers import those libraries."""
