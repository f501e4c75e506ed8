"""Commands about what a line did: its record read, verified and judged again; and what a run says at its end."""
