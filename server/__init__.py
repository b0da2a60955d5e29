"""The ServerApp: task, strategy and evaluation from the run config."""
