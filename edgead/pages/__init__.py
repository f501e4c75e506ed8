"""Self-contained pages: no network, no script needed to read them, readable in light, dark and on paper."""
