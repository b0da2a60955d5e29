"""The ClientApp that ``flwr run .`` starts."""
