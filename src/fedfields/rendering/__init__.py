"""From fields in space to pictures: cameras and their rays."""
