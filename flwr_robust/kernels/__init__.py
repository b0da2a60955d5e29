"""The few hot loops: centred Gram, order statistics of columns. Nothing else is allowed to be clever."""
