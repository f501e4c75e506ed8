"""Commands of the line: the camera loop, what it recorded, judged again, taught, served and signed off."""
