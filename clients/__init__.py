"""The ClientApp: honest and poisoned NumPyClients."""
