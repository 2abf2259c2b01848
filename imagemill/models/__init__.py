"""What image models take and what they cost, as data."""
