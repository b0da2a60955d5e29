"""The Flower app of `RunConfig`: a ClientApp and a ServerApp that ``flwr run`` and the engines start."""
