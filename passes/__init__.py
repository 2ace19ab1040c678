"""The compiler: zeroed channels out of a torch.fx graph. Knows torch and networkx only."""
