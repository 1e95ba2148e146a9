"""Volume rendering: rays, samples along them, and the colour that comes of it."""
