"""The few hot loops: Gram matrices, order statistics of columns. All other code stays simple."""
