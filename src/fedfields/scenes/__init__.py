"""What owners have: pictures and clips read from files, and how they are shared out among clients."""
