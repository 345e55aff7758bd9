"""Pages about `rosa`, and the generators of their generated parts."""
