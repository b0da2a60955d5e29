"""What clients and server tell each other, and what a round makes of it."""
