"""The messages between clients and server, and how a round uses them."""
