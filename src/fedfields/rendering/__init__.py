"""From fields in space to pictures: cameras, rays, samples along them, and the colour that comes of it."""
