"""Commands about what a line did: recorded, judged again, taught and signed off; and what a run says at its end."""
