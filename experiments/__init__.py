"""The studies and papers of the project, and their recorded results; `flwr_robust.studies` runs them."""
